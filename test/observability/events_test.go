package observability

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// unknownRole is an ARN that STS denies to everybody.
const unknownRole = "arn:aws:iam::" + environment.Account + ":role/unknown"

func hasReason(reason diagnosis.Reason) func(corev1.Event) bool {
	return func(e corev1.Event) bool { return e.Reason == string(reason) }
}

// TestSuccessIsToldOncePerNewPod also shows what kubectl gets to see of an event. A pod
// that was there before the server has no event: a restart of the server is no news.
func TestSuccessIsToldOncePerNewPod(t *testing.T) {
	ns := newNamespace(t, "events-success")
	old := newWorkload(ns, "old", env.NewRole()).create(t)
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	young, last := newWorkload(ns, "young", env.NewRole()).create(t), newWorkload(ns, "last", env.NewRole()).create(t)
	start := time.Now().Add(-time.Second) // timestamps have whole seconds
	for range 3 {
		old.getCredentials(t, s)
		young.getCredentials(t, s)
	}
	// Successes are written in their order: once this one is there, no other follows.
	last.getCredentials(t, s)
	last.waitEvent(t, hasReason(diagnosis.Serving))
	if events := old.events(t); len(events) != 0 {
		t.Errorf("a pod that was there before the server has %+v", events)
	}
	e := young.waitEvent(t, hasReason(diagnosis.Serving))
	pod, err := env.Client.CoreV1().Pods(ns).Get(t.Context(), young.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := (corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: ns, Name: young.Name, UID: pod.UID}); e.InvolvedObject != want {
		t.Errorf("involved object %+v, want %+v", e.InvolvedObject, want)
	}
	if e.Type != corev1.EventTypeNormal || e.Count != 1 || e.Source.Component != "iam4kube" ||
		e.FirstTimestamp.Time.Before(start) || e.FirstTimestamp != e.LastTimestamp {
		t.Errorf("event: %+v", e)
	}
	if want := "The pod gets credentials of " + young.arn + " (session name " + ns + "@young)."; e.Message != want {
		t.Errorf("message %q, want %q", e.Message, want)
	}
}

// TestFailuresAreTold has a line for each kind of failure; the event says what is missing
// and what to do.
func TestFailuresAreTold(t *testing.T) {
	ns := newNamespace(t, "events-failure")
	cfg := env.Config(t)
	cfg.MaxWait = 500 * time.Millisecond
	s := env.Start(t, cfg)
	s.WaitReady(t)
	unavailable := env.NewRole()
	env.STS.SetFault(unavailable, fakests.Fault{Effect: fakests.ServiceUnavailable})
	for name, c := range map[string]struct {
		arn       string
		noAccount bool
		status    int // 0: no request is sent
		reason    diagnosis.Reason
		text      []string
	}{
		"no-role": {
			status: http.StatusNotFound, reason: diagnosis.RoleMissing,
			text: []string{"missing role-annotation", "has no annotation " + role.AnnotationARN, "Add it"},
		},
		"bad-annotation": {
			arn: "not-an-arn", reason: diagnosis.AnnotationInvalid,
			text: []string{role.AnnotationARN, `"not-an-arn"`, "want the ARN of an IAM role", "Correct the annotation"},
		},
		"denied": {
			arn: unknownRole, status: http.StatusOK, reason: diagnosis.RoleDenied,
			text: []string{unknownRole, "events-failure@denied", "is not authorized to perform: sts:AssumeRole", "Check the role's trust policy"},
		},
		"unavailable": {
			arn: unavailable, status: http.StatusServiceUnavailable, reason: diagnosis.CredentialsUnavailable,
			text: []string{"missing credentials", unavailable, "ServiceUnavailable", "keeps trying"},
		},
		"no-account": {
			noAccount: true, status: http.StatusServiceUnavailable, reason: diagnosis.AccountMissing,
			text: []string{"missing service-account", "ServiceAccount no-account of pod events-failure/no-account", "Create it with the annotation " + role.AnnotationARN},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkload(ns, name, c.arn)
			if !c.noAccount {
				w.createAccount(t)
			}
			w.createPod(t)
			if c.status != 0 {
				w.get(t, s, c.status)
			}
			wantWarning(t, w, c.reason, c.text...)
		})
	}
	t.Run("two pods on one address", func(t *testing.T) {
		one, other := newWorkload(ns, "one", ""), newWorkload(ns, "other", "")
		other.IPs, other.from = one.IPs, one.from
		one.create(t)
		other.create(t)
		environment.Eventually(t, within, func() error {
			if n := s.Metric(t, "iam4kube_ambiguous_addresses"); n != 1 {
				return fmt.Errorf("%v ambiguous addresses", n)
			}
			return nil
		})
		body := one.get(t, s, http.StatusServiceUnavailable)
		for _, w := range []workload{one, other} {
			wantWarning(t, w, diagnosis.AddressAmbiguous, "missing single-pod", "more than one live pod claims source address "+one.from.String(), "as soon as one of them is left")
			if strings.Contains(body, "/"+w.Name) {
				t.Errorf("the answer names a pod: %s", body)
			}
		}
	})
}

func wantWarning(t *testing.T, w workload, reason diagnosis.Reason, text ...string) {
	t.Helper()
	e := w.waitEvent(t, hasReason(reason))
	if e.Type != corev1.EventTypeWarning || e.Count != 1 {
		t.Errorf("event: %+v", e)
	}
	for _, part := range text {
		if !strings.Contains(e.Message, part) {
			t.Errorf("message without %q: %s", part, e.Message)
		}
	}
}

// TestBadAnnotationIsToldAsItAppears: a good annotation that turns bad, with nobody asking.
func TestBadAnnotationIsToldAsItAppears(t *testing.T) {
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	w := newWorkload(newNamespace(t, "events-eager"), "app", env.NewRole()).create(t)
	w.getCredentials(t, s)
	w.waitEvent(t, hasReason(diagnosis.Serving))
	annotate(t, w, role.AnnotationDuration, "1")
	environment.Eventually(t, within, func() error {
		for _, e := range w.events(t) {
			if e.Reason == string(diagnosis.AnnotationInvalid) && strings.Contains(e.Message, role.AnnotationDuration) {
				return nil
			}
		}
		return fmt.Errorf("%+v", w.events(t))
	})
}

func annotate(t *testing.T, w workload, name, value string) {
	t.Helper()
	accounts := env.Client.CoreV1().ServiceAccounts(w.Namespace)
	account, err := accounts.Get(t.Context(), w.ServiceAccount, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if account.Annotations == nil {
		account.Annotations = map[string]string{}
	}
	account.Annotations[name] = value
	if _, err := accounts.Update(t.Context(), account, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestClientThatGivesUpIsTold: AWS SDKs end an attempt after a second, long before the
// server's wait is over, and the user still has to learn what was missing.
func TestClientThatGivesUpIsTold(t *testing.T) {
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	w := newWorkload(newNamespace(t, "events-gone"), "app", "").createPod(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if response, _, err := s.Do(ctx, s.Client(t, w.from), http.MethodGet, rolesPath, nil); err == nil {
		t.Fatalf("answered with %d", response.StatusCode)
	}
	wantWarning(t, w, diagnosis.AccountMissing, "missing service-account")
}

// TestReplicasShareEvents: what two replicas tell of one pod is one event; a failure
// counts both.
func TestReplicasShareEvents(t *testing.T) {
	ns := newNamespace(t, "events-replicas")
	one, two := env.Start(t, env.Config(t)), env.Start(t, env.Config(t))
	one.WaitReady(t)
	two.WaitReady(t)
	good, bad := newWorkload(ns, "good", env.NewRole()).create(t), newWorkload(ns, "bad", unknownRole).create(t)
	good.getCredentials(t, one)
	bad.get(t, one, http.StatusOK)
	good.waitEvent(t, hasReason(diagnosis.Serving))
	first := bad.waitEvent(t, hasReason(diagnosis.RoleDenied))
	good.getCredentials(t, two)
	bad.get(t, two, http.StatusOK)
	second := bad.waitEvent(t, func(e corev1.Event) bool { return e.Count == 2 })
	if second.UID != first.UID || second.FirstTimestamp != first.FirstTimestamp || second.LastTimestamp.Before(&first.LastTimestamp) {
		t.Errorf("first %+v, then %+v", first, second)
	}
	environment.Eventually(t, within, func() error {
		if n := two.Metric(t, "iam4kube_events_total", "outcome", "written"); n < 2 { // and those on ServiceAccounts
			return fmt.Errorf("the second replica has written %v", n)
		}
		return nil
	})
	if e := good.waitEvent(t, hasReason(diagnosis.Serving)); e.Count != 1 {
		t.Errorf("a success counts %d", e.Count)
	}
}

// TestServiceAccountIsTold: kubectl describe shows what is wrong with it, with no pod and nobody
// asking. Its UID is that by which kubectl looks.
func TestServiceAccountIsTold(t *testing.T) {
	ns := newNamespace(t, "events-accounts")
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	for name, c := range map[string]struct {
		arn    string
		reason diagnosis.Reason
	}{
		"denied": {unknownRole, diagnosis.RoleDenied},
		"wrong":  {"nonsense", diagnosis.AnnotationInvalid},
	} {
		newWorkload(ns, name, c.arn).createAccount(t)
		account, err := env.Client.CoreV1().ServiceAccounts(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		of := fields.Set{"involvedObject.kind": "ServiceAccount", "involvedObject.name": name, "involvedObject.uid": string(account.UID)}
		environment.Eventually(t, within, func() error {
			events, err := env.Client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: of.String()})
			if err != nil {
				return err
			}
			if len(events.Items) != 1 || events.Items[0].Reason != string(c.reason) || !strings.Contains(events.Items[0].Message, "ServiceAccount "+name+" ") {
				return fmt.Errorf("%s: %+v", name, events.Items)
			}
			return nil
		})
	}
}

// TestLongNamesAndMessages: the longest pod name leaves no room for a suffix, and the
// longest denial is longer than an event's message may be.
func TestLongNamesAndMessages(t *testing.T) {
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	// A dot where the name is cut: no label may end there.
	name := strings.Repeat("a", 235) + "." + strings.Repeat("b", 17)
	w := newWorkload(newNamespace(t, "events-long"), name, "arn:aws:iam::"+environment.Account+":role/"+strings.Repeat("/path", 102)[1:]+"/unknown").create(t)
	body := w.get(t, s, http.StatusOK)
	e := w.waitEvent(t, hasReason(diagnosis.RoleDenied))
	if problems := validation.IsDNS1123Subdomain(e.Name); len(problems) > 0 || !strings.HasPrefix(e.Name, name[:235]+".") {
		t.Errorf("name %q: %v", e.Name, problems)
	}
	if len(e.Message) != 1024 || !utf8.ValidString(e.Message) || len(body) < 1200 {
		t.Errorf("message of %d bytes, answer of %d: %s", len(e.Message), len(body), e.Message)
	}
}

// TestEventInTerminatingNamespace: the API server refuses the event. It is counted, and
// nobody tries again.
func TestEventInTerminatingNamespace(t *testing.T) {
	ns := newNamespace(t, "events-terminating")
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	w := newWorkload(ns, "app", unknownRole).create(t)
	if err := env.Client.CoreV1().Namespaces().Delete(t.Context(), ns, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		w.get(t, s, http.StatusOK)
	}
	environment.Eventually(t, within, func() error {
		lines := s.Logs.Lines("could not write an event")
		for _, line := range lines {
			if cause, _ := line["error"].(string); strings.Contains(cause, "being terminated") && line["pod"] == w.Name {
				return nil
			}
		}
		return fmt.Errorf("log lines: %v", lines)
	})
	// Failures are written in their order: this one comes after whatever there was to write.
	last := newWorkload(newNamespace(t, "events-after"), "app", unknownRole).create(t)
	last.get(t, s, http.StatusOK)
	last.waitEvent(t, hasReason(diagnosis.RoleDenied))
	if n := s.Metric(t, "iam4kube_events_total", "outcome", "failed"); n < 1 || n > 2 { // that on the ServiceAccount may have come in time
		t.Errorf("%v failed", n)
	}
	writes := audited(t, func(e auditEvent) bool { return e.ObjectRef.Resource == "events" && e.ObjectRef.Namespace == ns })
	if len(writes) < 1 || len(writes) > 2 {
		t.Errorf("requests: %v", writes)
	}
}
