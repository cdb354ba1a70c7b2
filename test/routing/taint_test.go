package routing

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	nft "github.com/google/nftables"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

const startupTaint = "iam4kube.io/not-ready"

// taintRights are what --startup-taint needs beyond manifests/base, for ServiceAccount
// NAME.
const taintRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: startup-taint
rules:
  - apiGroups: [""]
    resources: [nodes]
    verbs: [get, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: startup-taint
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: startup-taint
subjects:
  - kind: ServiceAccount
    name: NAME
    namespace: iam4kube
`

// grantTaint gives the rights to a ServiceAccount, until the test ends.
func grantTaint(t *testing.T, account string) {
	t.Helper()
	if err := cluster.Apply(t.Context(), []byte(strings.ReplaceAll(taintRights, "NAME", account))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The context of the test has ended.
		if err := cluster.Client.RbacV1().ClusterRoleBindings().Delete(context.Background(), "startup-taint", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// taintedNode makes a node with taints of these keys.
func taintedNode(t *testing.T, name string, keys ...string) {
	t.Helper()
	if err := cluster.CreateNode(t.Context(), controlplane.Node{Name: name}); err != nil {
		t.Fatal(err)
	}
	setTaints(t, name, func([]corev1.Taint) (taints []corev1.Taint) {
		for _, key := range keys {
			taints = append(taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
			if key == startupTaint {
				taints = append(taints, corev1.Taint{Key: key, Value: "yes", Effect: corev1.TaintEffectNoExecute})
			}
		}
		return taints
	})
}

func setTaints(t *testing.T, name string, change func([]corev1.Taint) []corev1.Taint) {
	t.Helper()
	nodes := cluster.Client.CoreV1().Nodes()
	n, err := nodes.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Spec.Taints = change(n.Spec.Taints)
	if _, err := nodes.Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// taintsOf are the keys of a node's taints.
func taintsOf(t *testing.T, name string) (keys []string) {
	t.Helper()
	n, err := cluster.Client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, taint := range n.Spec.Taints {
		keys = append(keys, taint.Key)
	}
	return keys
}

// patience is more than the ten seconds by which ip2service may put off to connect again where an
// API server on a busy machine was late with its first word.
const patience = 30 * time.Second

func waitTaints(t *testing.T, name string, want ...string) {
	t.Helper()
	environment.Eventually(t, patience, func() error {
		if have := taintsOf(t, name); !slices.Equal(have, want) {
			return fmt.Errorf("the node has taints %v, want %v", have, want)
		}
		return nil
	})
}

// The taint stays while the kernel does not take the rules, here because somebody else
// owns the table, and goes with both its effects when they are in. Others stay.
func TestCase17TaintStaysUntilTheKernelHasTheRules(t *testing.T) {
	netns.NewFarSide(t)
	const name = "new-node"
	taintedNode(t, name, "nvidia.com/gpu", startupTaint, "node.example.com/other")
	grantTaint(t, node.ServiceAccount)
	service := cluster.NewService()
	service.Set(t, "1", node.Ready("10.244.1.2"))
	conn, err := nft.New(nft.AsLasting())
	if err != nil {
		t.Fatal(err)
	}
	const owner = 1 << 1 // linux/netfilter/nf_tables.h, since Linux 5.12
	conn.AddTable(&nft.Table{Family: nft.TableFamilyIPv4, Name: "iam4kube", Flags: owner})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	i := service.Start(t, "--startup-taint", startupTaint, "--node-name", name)
	if _, err := i.Logs.Wait(t.Context(), "could not bring the rules into the kernel"); err != nil {
		t.Fatal(err)
	}
	i.WaitMetric(t, `iam4kube_endpoints{state="ready"}`, "1")
	if taints := taintsOf(t, name); !slices.Contains(taints, startupTaint) {
		t.Errorf("without rules the node has the taints %v", taints)
	}
	if err := conn.CloseLasting(); err != nil {
		t.Fatal(err)
	}
	waitTaints(t, name, "nvidia.com/gpu", "node.example.com/other")
	if rules := node.NFT(t, "list", "chain", "ip", "iam4kube", "endpoints"); !strings.Contains(rules, "dnat to 10.244.1.2:8080") {
		t.Errorf("without the taint the rules are\n%s", rules)
	}
}

// The guard alone, before the API server has told of endpoints, is not enough.
func TestCase17TaintStaysUntilTheEndpointsAreKnown(t *testing.T) {
	netns.NewFarSide(t)
	const name, account = "early-node", "early"
	taintedNode(t, name, startupTaint)
	if err := cluster.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: node.Namespace, Name: account}); err != nil {
		t.Fatal(err)
	}
	grantTaint(t, account)
	config, err := cluster.ServiceAccountConfig(t.Context(), node.Namespace, account)
	if err != nil {
		t.Fatal(err)
	}
	service := cluster.NewService()
	i := node.StartProgram(t, "--kubeconfig", cluster.Kubeconfig(t, config), "--service-namespace", node.Namespace,
		"--service-name", service.Name, "--startup-taint", startupTaint, "--node-name", name)
	environment.Eventually(t, patience, func() error {
		if !strings.Contains(i.Logs.String(), `cannot list resource \"endpointslices\"`) {
			return fmt.Errorf("the API server has not refused the list yet")
		}
		return nil
	})
	node.NFT(t, "list", "chain", "ip", "iam4kube", "guard-forward") // which is in
	if taints := taintsOf(t, name); !slices.Contains(taints, startupTaint) {
		t.Errorf("without endpoints the node has the taints %v", taints)
	}
	bindings := cluster.Client.RbacV1().RoleBindings(node.Namespace)
	binding, err := bindings.Get(t.Context(), node.ServiceAccount, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	binding.ObjectMeta = metav1.ObjectMeta{Name: account}
	binding.Subjects[0].Name = account
	if _, err := bindings.Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitTaints(t, name)
}

// faults is a proxy to the API server that does something else with patches of nodes, one
// after the other.
type faults struct {
	proxy *httputil.ReverseProxy

	mu             sync.Mutex
	reads, patches int // of nodes
	do             []func(w http.ResponseWriter, forward func(http.ResponseWriter))
}

func (f *faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	forward := func(w http.ResponseWriter) { f.proxy.ServeHTTP(w, r) }
	if !strings.HasPrefix(r.URL.Path, "/api/v1/nodes/") {
		forward(w)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == http.MethodGet {
		f.reads++
	} else if f.patches++; f.patches <= len(f.do) {
		f.do[f.patches-1](w, forward)
		return
	}
	forward(w)
}

// startBehind starts ip2service so that it sees the API server through f.
func startBehind(t *testing.T, f *faults, service *node.Service, name string) *node.IP2Service {
	t.Helper()
	grantTaint(t, node.ServiceAccount)
	config, err := cluster.ServiceAccountConfig(t.Context(), node.Namespace, node.ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	f.proxy = httputil.NewSingleHostReverseProxy(target)
	f.proxy.FlushInterval = -1
	// It adds the token, which clients send over TLS alone.
	if f.proxy.Transport, err = rest.TransportFor(config); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return node.StartProgram(t, "--kubeconfig", cluster.Kubeconfig(t, &rest.Config{Host: server.URL}), "--service-namespace", node.Namespace,
		"--service-name", service.Name, "--startup-taint", startupTaint, "--node-name", name)
}

// wantCalls waits until the node was read so often, and then long enough for a patch that
// should not be.
func (f *faults) wantCalls(t *testing.T, i *node.IP2Service, service *node.Service, reads, patches int) {
	t.Helper()
	have := func() (int, int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.reads, f.patches
	}
	environment.Eventually(t, patience, func() error {
		if n, _ := have(); n < reads {
			return fmt.Errorf("the node was read %d times, want %d", n, reads)
		}
		return nil
	})
	service.Set(t, "later", node.Ready("10.244.1.2"))
	i.WaitMetric(t, `iam4kube_endpoints{state="ready"}`, "1")
	if r, p := have(); r != reads || p != patches {
		t.Errorf("the node was read %d times and patched %d times, want %d and %d", r, p, reads, patches)
	}
}

// A patch that meets a change by somebody else, one that fails before it takes effect, and
// one whose answer gets lost: each is repeated as far as there is something left to do, and
// nobody else's taint is lost.
func TestCase17RemovalOfTheTaintIsRepeated(t *testing.T) {
	netns.NewFarSide(t)
	const name = "contested-node"
	taintedNode(t, name, "nvidia.com/gpu", startupTaint)
	f := &faults{do: []func(http.ResponseWriter, func(http.ResponseWriter)){
		func(w http.ResponseWriter, forward func(http.ResponseWriter)) {
			setTaints(t, name, func(taints []corev1.Taint) []corev1.Taint {
				return append(taints, corev1.Taint{Key: "node.example.com/late", Effect: corev1.TaintEffectNoSchedule})
			})
			forward(w)
		},
		func(w http.ResponseWriter, _ func(http.ResponseWriter)) {
			http.Error(w, "before the effect", http.StatusInternalServerError)
		},
		func(w http.ResponseWriter, forward func(http.ResponseWriter)) {
			forward(httptest.NewRecorder())
			http.Error(w, "after the effect", http.StatusInternalServerError)
		},
	}}
	service := cluster.NewService()
	i := startBehind(t, f, service, name)
	waitTaints(t, name, "nvidia.com/gpu", "node.example.com/late")
	f.wantCalls(t, i, service, 4, 3) // the last look finds nothing left to do
	warnings := i.Logs.Lines("could not remove the start-up taint")
	if len(warnings) != 3 {
		t.Fatalf("%d warnings, want one for each failure", len(warnings))
	}
	for n, part := range []string{"has been modified", "before the effect", "after the effect"} {
		if text := warnings[n]["error"].(string); !strings.Contains(text, part) {
			t.Errorf("warning %d is %q, want %q", n, text, part)
		}
	}
}

// A node that has lost the taint, or never had it, is not written to.
func TestCase17NodeWithoutTheTaintIsLetBe(t *testing.T) {
	netns.NewFarSide(t)
	const name = "old-node"
	taintedNode(t, name, "nvidia.com/gpu")
	f, service := &faults{}, cluster.NewService()
	i := startBehind(t, f, service, name)
	f.wantCalls(t, i, service, 1, 0)
	if taints := taintsOf(t, name); !slices.Equal(taints, []string{"nvidia.com/gpu"}) {
		t.Errorf("taints %v", taints)
	}
}
