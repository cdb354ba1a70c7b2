package kube

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// files of a kubeconfig, as a pod has them: token and CA may be exchanged.
type files struct{ kubeconfig, token, ca string }

func (a *api) files(token string) files {
	dir := a.t.TempDir()
	f := files{filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "token"), filepath.Join(dir, "ca.crt")}
	write(a.t, f.token, []byte(token))
	write(a.t, f.ca, a.ca)
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: "https://127.0.0.1:6443", CertificateAuthority: f.ca}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{TokenFile: f.token}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	if err := clientcmd.WriteToFile(*config, f.kubeconfig); err != nil {
		a.t.Fatal(err)
	}
	return f
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// config is what Config makes, with the api in place of TCP.
func (a *api) config(f files, reach *Reach) *rest.Config {
	cfg, err := Config(f.kubeconfig, "test", reach)
	if err != nil {
		a.t.Fatal(err)
	}
	cfg.Dial = a.dial
	return cfg
}

// follower is a program that follows the objects of an api.
type follower struct {
	watches *Watches
	reach   *Reach
	names   *names
	files   files
}

// follow starts one. It ends with the test.
func (a *api) follow() *follower { return a.followBy(a.dial) }

func (a *api) followBy(dial DialFunc) *follower {
	f := &follower{reach: &Reach{}, names: &names{present: map[string]bool{}}, files: a.files("first")}
	config := a.config(f.files, f.reach)
	config.Dial = dial
	client, hangUp, err := HTTPClient(config)
	if err != nil {
		a.t.Fatal(err)
	}
	kube, err := kubernetes.NewForConfigAndClient(config, client)
	if err != nil {
		a.t.Fatal(err)
	}
	f.watches = NewWatches(f.reach, kube.Discovery().RESTClient(), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(context.Background())
	maps := kube.CoreV1().ConfigMaps(metav1.NamespaceAll)
	runs := []func(context.Context) error{f.watches.Run, Follow(f.watches, Resource[*corev1.ConfigMap, string]{
		Name:     "configmaps",
		Selector: func(*metav1.ListOptions) {},
		List:     func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return maps.List(ctx, o) },
		Watch:    func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return maps.Watch(ctx, o) },
		Keep:     func(o *corev1.ConfigMap) string { return o.Name },
		Sink:     f.names,
	})}
	var running sync.WaitGroup
	for _, run := range runs {
		running.Go(func() { _ = run(ctx) })
	}
	a.t.Cleanup(func() {
		cancel()
		running.Wait()
		hangUp()
	})
	return f
}

// names is a Sink.
type names struct {
	mu       sync.Mutex
	present  map[string]bool
	replaced int
}

func (n *names) Replace(all []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replaced++
	clear(n.present)
	for _, name := range all {
		n.present[name] = true
	}
}

func (n *names) Set(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.present[name] = true
}

func (n *names) Delete(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.present, name)
}

func (n *names) has(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.present[name]
}

// within advances the bubble's clock until the condition holds and returns how long that
// took; more than d fails the test.
func within(t *testing.T, d time.Duration, condition func() bool) time.Duration {
	t.Helper()
	const step = 50 * time.Millisecond
	for took := time.Duration(0); took <= d; took += step {
		synctest.Wait()
		if condition() {
			return took
		}
		advance(step)
	}
	t.Fatalf("not within %v", d)
	return 0
}

// advance lets time pass in the bubble.
func advance(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // how a bubble's clock is advanced
	synctest.Wait()
}
