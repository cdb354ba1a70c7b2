package plugin

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

// dialer connects to a port of a pod's loopback.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// kubelet is that of all nodes, as far as port-forwards need one: the API server sends them to
// it, and the kubelet's own library speaks SPDY.
type kubelet struct {
	*httptest.Server
	mu sync.Mutex
	// By namespace/name.
	pods map[string]dialer
	logs map[string]func() string
}

func startKubelet(t *testing.T) *kubelet {
	t.Helper()
	k := &kubelet{pods: map[string]dialer{}, logs: map[string]func() string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/portForward/{namespace}/{name}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("namespace") + "/" + r.PathValue("name")
		portforward.ServePortForward(w, r, k, name, "", &portforward.V4Options{}, time.Minute, 10*time.Second, portforward.SupportedProtocols)
	})
	mux.HandleFunc("/containerLogs/{namespace}/{name}/{container}", func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		logs := k.logs[r.PathValue("namespace")+"/"+r.PathValue("name")]
		k.mu.Unlock()
		if logs == nil {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, logs())
	})
	k.Server = httptest.NewTLSServer(mux)
	t.Cleanup(k.Close)
	return k
}

// run makes a pod's ports those that dial reaches; nil ends that.
func (k *kubelet) run(pod *corev1.Pod, dial dialer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods[pod.Namespace+"/"+pod.Name] = dial
}

// log makes a pod's log what this returns.
func (k *kubelet) log(pod *corev1.Pod, text func() string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.logs[pod.Namespace+"/"+pod.Name] = text
}

// PortForward implements portforward.PortForwarder.
func (k *kubelet) PortForward(ctx context.Context, name, _ string, port int32, stream io.ReadWriteCloser) error {
	defer func() { _ = stream.Close() }()
	k.mu.Lock()
	dial := k.pods[name]
	k.mu.Unlock()
	if dial == nil {
		return fmt.Errorf("pod %s does not run", name)
	}
	connection, err := dial(ctx, "tcp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	go func() {
		_, _ = io.Copy(connection, stream)
		_ = connection.Close()
	}()
	_, _ = io.Copy(stream, connection)
	return nil
}

// node registers a node whose kubelet this is.
func (k *kubelet) node(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(k.URL, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux"}}}
	maps.Copy(object.Labels, labels)
	object.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	object.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if _, err := fmt.Sscan(port, &object.Status.DaemonEndpoints.KubeletEndpoint.Port); err != nil {
		t.Fatal(err)
	}
	if _, err := env.Client.CoreV1().Nodes().Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Client.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}
