//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/test/docs"
)

// setups are wrong ones, by what is wrong, with what the user reads of each. … is what varies;
// the event has the text of the answer, if no other.
var setups = map[string]struct{ answer, reason, event, init, kubectl string }{
	"no annotation": {
		answer: "missing role-annotation: ServiceAccount … of pod … (source address …) has no annotation iam.amazonaws.com/roleArn. Add it if the pod needs an IAM role; no restart is needed.",
		reason: "IAMRoleMissing",
	},
	"bad ARN": {
		answer: `ServiceAccount … of pod … gives no IAM role: annotation iam.amazonaws.com/roleArn has the value "…", want the ARN of an IAM role, such as arn:aws:iam::123456789012:role/NAME. Correct the annotation; no restart is needed.`,
		reason: "IAMRoleAnnotationInvalid",
		event:  `ServiceAccount … gives no IAM role: annotation iam.amazonaws.com/roleArn has the value "…", want the ARN of an IAM role, such as arn:aws:iam::123456789012:role/NAME. Correct the annotation; no restart is needed.`,
	},
	"trust refuses": {
		answer: "STS refuses the role … to ServiceAccount … of pod … (session name …, external ID …, … s): AccessDenied: User: … is not authorized to perform: sts:AssumeRole on resource: …. Check the role's trust policy and the annotations. The next attempt is at …; a change of these annotations starts one at once.",
		reason: "IAMRoleDenied",
	},
	"wrong external ID": {
		answer: "STS refuses the role … to ServiceAccount … of pod … (session name …, external ID …, … s): AccessDenied: User: … is not authorized to perform: sts:AssumeRole on resource: …. Check the role's trust policy and the annotations. The next attempt is at …; a change of these annotations starts one at once.",
		reason: "IAMRoleDenied",
	},
	"masqueraded source": {
		answer: "source address … is a node's, so no pod can be told from it. Pods with hostNetwork cannot be served; for others, traffic to the metadata address is masqueraded (SNAT) on its way: exclude it.",
		init:   "the server saw the address …, which is none of this pod's (…), and cannot know the pod by it. Either the traffic is masqueraded on its way (kube-proxy with masqueradeAll or a wrong cluster CIDR, the network plugin, the server on the host's network), or it leaves by another interface than the pod's first one",
	},
	"hostNetwork": {
		answer: "source address … is a node's, so no pod can be told from it. Pods with hostNetwork cannot be served; for others, traffic to the metadata address is masqueraded (SNAT) on its way: exclude it.",
	},
	"no ready server": {
		answer: "connection refused",
		init:   "169.254.169.254:80, which leads to …: refused: there is no ready server (kubectl -n iam4kube get pods,endpointslices), or a NetworkPolicy rejects the traffic (…)",
	},
	"no NET_ADMIN allowed": {
		kubectl: `violates PodSecurity "baseline:…": non-default capabilities (container "iam4kube-ip2service" must not include "NET_ADMIN" in securityContext.capabilities.add)`,
	},
	"webhook down": {
		kubectl: `Internal error occurred: failed calling webhook "inject.iam4kube.io": failed to call webhook: Post "https://iam4kube-webhook.iam4kube.svc:443/inject?timeout=5s": …`,
	},
}

// Each message stands in the table of wrong set-ups, word for word, but for who says it.
func TestTroubleshootingHasTheMessages(t *testing.T) {
	page := docs.Text(t, "troubleshooting.md")
	for name, setup := range setups {
		for _, message := range []string{setup.answer, setup.reason, setup.event, setup.init, setup.kubectl} {
			said := strings.Contains(page, "`"+message+"`") || strings.Contains(page, ": "+message+"`")
			if message != "" && !said {
				t.Errorf("%s: docs/troubleshooting.md does not have\n%s", name, message)
			}
		}
	}
}

// wantMessage checks that a text has a message of setups in it.
func wantMessage(t *testing.T, text, message string) {
	t.Helper()
	parts := strings.Split(message, "…")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	if message == "" || !regexp.MustCompile("(?s)"+strings.Join(parts, ".+")).MatchString(text) {
		t.Errorf("the user reads\n%s\nwant\n%s", text, message)
	}
}

// What is wrong with a ServiceAccount or its role is told by the answer, by an event on the
// pod, and in injected pods by the init container, which lets the pod start.
func TestWrongRoles(t *testing.T) {
	t.Parallel()
	for _, way := range []path{nodeWide, inPod} {
		ns := namespace(t, way)
		for name, annotations := range map[string][]string{
			"no annotation":     nil,
			"bad ARN":           {"iam.amazonaws.com/roleArn", "arn:aws:iam::111122223333:user/somebody"},
			"trust refuses":     {"iam.amazonaws.com/roleArn", account + "others"},
			"wrong external ID": {"iam.amazonaws.com/roleArn", account + "external", "iam.amazonaws.com/roleExternalId", "7Qx-wrong"},
		} {
			t.Run(fmt.Sprintf("%s/%s", way, name), func(t *testing.T) {
				t.Parallel()
				setup, object := setups[name], strings.ToLower(strings.ReplaceAll(name, " ", "-"))
				serviceAccount(t, ns, object, annotations...)
				create(t, clientPod(ns, object, "once"))
				pod := waitPod(t, ns, object, ended)
				wantMessage(t, decode(t, logs(t, ns, pod.Name, "client")).Error, setup.answer)
				eventually(t, "the event "+setup.reason, func() bool {
					events, err := kubectl(t.Context(), "", "--namespace="+ns, "get", "events", "--field-selector=involvedObject.name="+pod.Name+",reason="+setup.reason, "--output=jsonpath={.items[*].message}")
					if err == nil && events != "" {
						wantMessage(t, events, cmp.Or(setup.event, setup.answer))
					}
					return events != ""
				})
				if way == inPod {
					text := string(logs(t, ns, pod.Name, "iam4kube-ip2service"))
					wantMessage(t, strings.ReplaceAll(text, `\"`, `"`), setup.answer)
					wantMessage(t, text, "the pod starts without credentials")
				}
			})
		}
	}
}

// Pods on the host's network are not intercepted. Those that ask the Service itself are told
// why they get nothing.
func TestHostNetwork(t *testing.T) {
	t.Parallel()
	ns := namespace(t, nodeWide)
	role(t, ns, "role-01")
	service, err := client.CoreV1().Services(own).Get(t.Context(), "iam4kube", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := onWorker(clientPod(ns, "role-01", "get"), "worker-1")
	pod.Spec.HostNetwork = true
	pod.Spec.Containers[0].Args = append(pod.Spec.Containers[0].Args, "http://"+service.Spec.ClusterIP+"/latest/meta-data/iam/security-credentials/")
	create(t, pod)
	waitPod(t, ns, pod.Name, ended)
	text := string(logs(t, ns, pod.Name, "client"))
	wantMessage(t, text, "403 Forbidden: iam4kube: "+setups["hostNetwork"].answer)
}

// masquerade is what a CNI plug-in or kube-proxy that is configured wrongly would do.
const masquerade = `table ip wrong { chain postrouting { type nat hook postrouting priority 100; ip saddr 10.244.4.0/24 tcp dport 8080 masquerade; }; }`

func TestMasqueradedSource(t *testing.T) {
	onNode(t, "worker-2", "nft", masquerade)
	t.Cleanup(func() {
		cmd, err := machine.Command(context.Background(), "worker-2", "nft", "delete", "table", "ip", "wrong")
		if err == nil {
			err = cmd.Run()
		}
		if err != nil {
			t.Error(err)
		}
	})
	for i, way := range []path{nodeWide, inPod} {
		ns, name := namespace(t, way), fmt.Sprintf("role-%02d", 1+i)
		role(t, ns, name)
		create(t, onWorker(clientPod(ns, name, "once"), "worker-2"))
		pod := waitPod(t, ns, name, ended)
		if way == nodeWide {
			wantMessage(t, decode(t, logs(t, ns, name, "client")).Error, setups["masqueraded source"].answer)
			continue
		}
		// It does not start, and says why.
		wantInitFailure(t, pod, setups["masqueraded source"].init)
	}
	// A token does not depend on the address.
	ns := namespace(t, withToken)
	role(t, ns, "role-03")
	create(t, onWorker(clientPod(ns, "role-03", "wait"), "worker-2"))
	pod := waitPod(t, ns, "role-03", running)
	wantByToken(t, pod)
	wantNothingWithoutToken(t, pod)
}

// wantInitFailure checks what the init container has left for `kubectl describe pod`.
func wantInitFailure(t *testing.T, pod *corev1.Pod, message string) {
	t.Helper()
	state := pod.Status.InitContainerStatuses[0].State.Terminated
	if state == nil || state.ExitCode != 113 {
		t.Fatalf("the init container: %+v", pod.Status.InitContainerStatuses[0])
	}
	wantMessage(t, state.Message, message)
	wantMessage(t, string(logs(t, pod.Namespace, pod.Name, "iam4kube-ip2service")), message)
}

func TestNoNetAdminAllowed(t *testing.T) {
	t.Parallel()
	ns := namespace(t, inPod)
	mustKubectl(t, "label", "namespace", ns, "pod-security.kubernetes.io/enforce=baseline")
	var err error
	eventually(t, "the refusal", func() bool {
		_, err = kubectl(t.Context(), fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: refused, namespace: %s}, spec: {containers: [{name: client, image: %s}]}}", ns, clientImage), "apply", "-f", "-")
		return err != nil && strings.Contains(err.Error(), "PodSecurity")
	})
	wantMessage(t, err.Error(), setups["no NET_ADMIN allowed"].kubectl)
}

// Without a ready server pods are refused at once; one that is injected does not start, and
// says why when its probe gives up. Without the webhook it is refused.
func TestNoServerNoWebhook(t *testing.T) {
	t.Cleanup(func() { reinstall(t) })
	var pods []*corev1.Pod
	for i, way := range []path{nodeWide, inPod} {
		ns, name := namespace(t, way), fmt.Sprintf("role-%02d", 1+i)
		role(t, ns, name)
		create(t, clientPod(ns, name, "wait"))
		pods = append(pods, waitPod(t, ns, name, running))
	}
	mustKubectl(t, "--namespace="+own, "scale", "deployment/iam4kube-server", "--replicas=0")
	gone(t, "server")
	for _, pod := range pods {
		start := time.Now()
		output, _ := kubectl(t.Context(), "", "--namespace="+pod.Namespace, "exec", pod.Name, "--container=client", "--", "/client", "once")
		wantMessage(t, decode(t, []byte(output)).Error, setups["no ready server"].answer)
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("%s: refused after %s", pod.Namespace, took)
		}
	}
	injected := newPods(t, pods[1:], "once")[0]

	mustKubectl(t, "--namespace="+own, "scale", "deployment/iam4kube-webhook", "--replicas=0")
	gone(t, "webhook")
	_, err := client.CoreV1().Pods(injected.Namespace).Create(t.Context(), clientPod(injected.Namespace, "default", "once"), metav1.CreateOptions{})
	if err == nil {
		t.Fatal("a pod was made without the webhook")
	}
	wantMessage(t, err.Error(), setups["webhook down"].kubectl)

	wantInitFailure(t, waitPod(t, injected.Namespace, injected.Name, ended), setups["no ready server"].init)
	wantNoLeaks(t)
}
