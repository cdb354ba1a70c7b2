package webhook

import (
	"context"
	"net/http"
	"slices"

	"go.uber.org/zap"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// handler turns a review into a decision and the decision into an answer. Nothing of it
// leaves the process, so a dry run is like any other.
type handler struct {
	// webhook is what the handler is for, in metrics and logs.
	webhook string
	decide  func(namespace string, pod []byte) inject.Decision
	metrics *metrics
	log     *zap.Logger
}

var (
	pods       = metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
	operations = []admissionv1.Operation{admissionv1.Create, admissionv1.Update, admissionv1.Delete, admissionv1.Connect}
)

// Handle implements admission.Handler.
func (h *handler) Handle(_ context.Context, r admission.Request) admission.Response {
	decision := inject.Decision{Outcome: inject.Skipped, Reason: inject.NotANewPod, Pod: r.Name}
	switch {
	// The decoder makes an empty review of any JSON object.
	case r.UID == "", r.Resource.Resource == "", !slices.Contains(operations, r.Operation):
		decision.Outcome, decision.Reason, decision.Message = inject.Denied, inject.Malformed, "iam4kube cannot read the review: it lacks its uid, resource or operation"
	case r.Resource == pods && r.SubResource == "" && r.Operation == admissionv1.Create:
		decision = h.decide(r.Namespace, r.Object.Raw)
	}
	h.metrics.decided(h.webhook, decision)
	dryRun := r.DryRun != nil && *r.DryRun
	fields := []zap.Field{
		zap.String(logging.Webhook, h.webhook),
		zap.String(logging.Namespace, r.Namespace), zap.String(logging.Pod, decision.Pod),
		zap.String(logging.Outcome, string(decision.Outcome)), zap.String(logging.Reason, string(decision.Reason)), zap.Bool(logging.DryRun, dryRun),
	}
	if decision.Outcome == inject.Denied {
		h.log.Warn("denied a pod", append(fields, zap.String(logging.Cause, decision.Message))...)
		return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &metav1.Status{
			Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: decision.Message,
		}}}
	}
	h.log.Info("admitted a pod", fields...)
	return admission.Response{AdmissionResponse: admit(decision)}
}

func admit(d inject.Decision) admissionv1.AdmissionResponse {
	response := admissionv1.AdmissionResponse{Allowed: true, Warnings: d.Warnings}
	if d.Outcome == inject.Injected {
		patchType := admissionv1.PatchTypeJSONPatch
		response.Patch, response.PatchType = d.Patch, &patchType
	}
	return response
}
