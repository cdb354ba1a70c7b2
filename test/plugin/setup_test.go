package plugin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

const (
	pluginFolder = "cmd/kubectl-iam4kube"
	own          = "iam4kube"
	serverNode   = "node-restriction.kubernetes.io/iam4kube-server"
	within       = time.Minute
	// answersWithin is what the plugin has for one answer.
	answersWithin = 10 * time.Second
	rolesPath     = "/latest/meta-data/iam/security-credentials/"
)

// setup is iam4kube in a cluster of three nodes, by the overlay `both`.
type setup struct {
	kubelet *kubelet
	servers []*server
	client  dynamic.Interface
	ca      []byte // of the webhook
}

// server is a replica in a network namespace of its own.
type server struct {
	*environment.Server
	pod *corev1.Pod
	ns  *netns.Pod
}

// install makes a healthy set-up. flags are further ones of the servers.
func install(t *testing.T, flags ...string) *setup {
	t.Helper()
	client, err := dynamic.NewForConfig(env.ControlPlane.Config())
	if err != nil {
		t.Fatal(err)
	}
	s := &setup{kubelet: startKubelet(t), client: client}
	_, crds, err := controlplane.BuildCertManager(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(crds, "*cert-manager.io_*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	if err := env.ApplyFiles(t.Context(), files...); err != nil {
		t.Fatal(err)
	}
	for _, overlay := range []string{"namespace", "both"} {
		manifests := kustomize(t, overlay)
		environment.Eventually(t, within, func() error { return env.Apply(t.Context(), manifests) })
	}
	s.kubelet.node(t, "server-1", map[string]string{serverNode: "true"})
	s.kubelet.node(t, "worker-1", nil)
	s.kubelet.node(t, "worker-2", nil)
	for i := range 2 {
		s.addServer(t, fmt.Sprint("iam4kube-server-", i), fmt.Sprint("10.244.1.", 1+i), flags...)
	}
	for _, node := range []string{"worker-1", "worker-2"} {
		daemons, err := env.Client.AppsV1().DaemonSets(own).Get(t.Context(), "iam4kube-ip2service", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.createPod(t, pod(own, "iam4kube-ip2service-"+node, node, daemons.Spec.Template), "192.0.2.9")
	}
	s.addWebhook(t)
	for _, r := range s.servers {
		r.WaitReady(t)
	}
	s.report(t)
	return s
}

// report writes what controllers and cert-manager say of a set-up on which all is well.
func (s *setup) report(t *testing.T) {
	t.Helper()
	for _, name := range []string{"iam4kube-server", "iam4kube-webhook"} {
		s.edit(t, object{deployments, own, name, "status"}, func(o map[string]any) {
			o["status"] = map[string]any{"replicas": int64(2), "readyReplicas": int64(2), "updatedReplicas": int64(2)}
		})
	}
	s.edit(t, object{daemonSets, own, "iam4kube-ip2service", "status"}, func(o map[string]any) {
		o["status"] = map[string]any{"desiredNumberScheduled": int64(2), "currentNumberScheduled": int64(2), "numberReady": int64(2), "numberMisscheduled": int64(0)}
	})
	for _, name := range []string{"iam4kube-webhook-ca", "iam4kube-webhook"} {
		s.edit(t, object{certificates, own, name, "status"}, ready("True", "Ready", "Certificate is up to date and has not expired"))
	}
	s.edit(t, object{configurations, "", "iam4kube-webhook", ""}, caBundle(s.ca))
}

// ready is a condition of a Certificate.
func ready(status, reason, message string) func(map[string]any) {
	return func(o map[string]any) {
		o["status"] = map[string]any{"conditions": []any{map[string]any{
			"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-11-30T00:00:00Z",
		}}}
	}
}

// caBundle writes what cainjector would.
func caBundle(ca []byte) func(map[string]any) {
	return func(o map[string]any) {
		for _, hook := range o["webhooks"].([]any) {
			config := hook.(map[string]any)["clientConfig"].(map[string]any)
			config["caBundle"] = base64.StdEncoding.EncodeToString(ca)
		}
	}
}

// addWebhook runs pods of the webhook: of what the program does, TLS alone is looked at.
func (s *setup) addWebhook(t *testing.T) {
	t.Helper()
	const name = "iam4kube-webhook.iam4kube.svc"
	ca, certificate := authority(t, name, time.Now().Add(80*24*time.Hour))
	s.ca = ca
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer func() { _ = connection.Close() }()
				_ = connection.(*tls.Conn).Handshake()
				_, _ = connection.Read(make([]byte, 1)) // until the other side goes
			}()
		}
	}()
	deployment, err := env.Client.AppsV1().Deployments(own).Get(t.Context(), "iam4kube-webhook", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := s.createPod(t, pod(own, "iam4kube-webhook-0", "server-1", deployment.Spec.Template), "10.244.1.9")
	s.kubelet.run(p, func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, listener.Addr().String())
	})
}

// authority is a CA, and a certificate of it for a name.
func authority(t *testing.T, name string, ends time.Time) (ca []byte, certificate tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "iam4kube-webhook-ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: ends,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, DNSNames: []string{name},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func kustomize(t *testing.T, overlay string) []byte {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), checkout.Path("manifests", overlay))
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := built.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return manifests
}

// pod is what a controller makes of a template, for this node.
func pod(namespace, name, node string, template corev1.PodTemplateSpec) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: template.Labels}, Spec: *template.Spec.DeepCopy()}
	p.Spec.NodeName = node
	p.Spec.PriorityClassName = "" // there is no controller that counts what the quota for it counts
	return p
}

// createPod creates a pod that runs with this address, until the test ends. It is bound to its
// node as the scheduler does it: a policy refuses pods that name one by themselves.
func (s *setup) createPod(t *testing.T, p *corev1.Pod, address string) *corev1.Pod {
	t.Helper()
	unbound := p.DeepCopy()
	unbound.Spec.NodeName = ""
	pods := env.Client.CoreV1().Pods(p.Namespace)
	created, err := pods.Create(t.Context(), unbound, metav1.CreateOptions{})
	if err == nil && p.Spec.NodeName != "" {
		err = pods.Bind(t.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: p.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: p.Spec.NodeName}}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.DeletePod(context.Background(), p.Namespace, p.Name, 0); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	if p.Spec.NodeName == "" {
		return created
	}
	status := controlplane.RunningStatus([]string{address}, []string{"192.0.2.9"})
	for _, c := range p.Spec.InitContainers {
		now := metav1.Now()
		status.InitContainerStatuses = append(status.InitContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true,
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: now, FinishedAt: now}},
		})
	}
	if created, err = env.SetPodStatus(t.Context(), created, status); err != nil {
		t.Fatal(err)
	}
	return created
}

// addServer runs a replica, and its pod says so.
func (s *setup) addServer(t *testing.T, name, address string, flags ...string) {
	t.Helper()
	r := &server{ns: netns.AddPod(t, address)}
	t.Cleanup(func() { // after the server has ended, with another status then
		if _, report, found := strings.Cut(r.Logs.String(), "WARNING: DATA RACE"); found {
			t.Log("the server's race detector:", report[:min(len(report), 5000)])
		}
	})
	r.Server, _ = env.StartInPod(t, r.ns, append([]string{"--debug", "--listen-on", ":8080", "--aux-listen-on", ":9090", "--drain", "0s", "--namespace", own}, flags...)...)
	deployment := s.deployment(t)
	for i := range deployment.Spec.Template.Spec.Containers {
		c := &deployment.Spec.Template.Spec.Containers[i]
		c.Args = append(append(c.Args, "--debug"), flags...)
	}
	r.pod = s.createPod(t, pod(own, name, "server-1", deployment.Spec.Template), address)
	s.kubelet.run(r.pod, r.ns.DialContext)
	s.kubelet.log(r.pod, r.Logs.String)
	// The metrics of another namespace are asked for through it.
	r.Aux = net.JoinHostPort(address, "9090")
	s.servers = append(s.servers, r)
}

func (*setup) deployment(t *testing.T) *appsv1.Deployment {
	t.Helper()
	d, err := env.Client.AppsV1().Deployments(own).Get(t.Context(), "iam4kube-server", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// ask is a request of the pod on this loopback address, in the server's own namespace.
func (r *server) ask(t *testing.T, from netip.Addr, path string) (status int, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (connection net.Conn, err error) {
		err = r.ns.Do(func() error {
			connection, err = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}).DialContext(ctx, network, "127.0.0.1:8080")
			return err
		})
		return connection, err
	}}}
	response, err := client.Get("http://169.254.169.254" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var text bytes.Buffer
	if _, err := text.ReadFrom(response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, text.String()
}

// answer is what the plugin prints with -o json, of any command.
type answer struct {
	Broken     string
	Role       *struct{ ARN, SessionName, AccessKeyID string }
	Links      []link
	Categories []struct {
		Name   string
		Checks []link
	}
	status int
	text   string
}

// bad are the findings of `check` in these states.
func (a answer) bad(states ...string) (bad []link) {
	for _, c := range a.Categories {
		for _, l := range c.Checks {
			if slices.Contains(states, l.State) {
				bad = append(bad, l)
			}
		}
	}
	return bad
}

type link struct{ Link, State, Piece, Text, Remedy, Docs string }

// of is the link of this name.
func (a answer) of(name string) link {
	for _, l := range a.Links {
		if l.Link == name {
			return l
		}
	}
	return link{}
}

// plugin runs a command as a user with these rights.
func plugin(t *testing.T, rights *rest.Config, arguments ...string) answer {
	t.Helper()
	a := answer{}
	a.text, a.status = pluginText(t, rights, append(arguments, "-o", "json")...)
	if err := json.Unmarshal([]byte(a.text), &a); err != nil {
		t.Fatalf("%v: %s", err, a.text)
	}
	return a
}

func pluginText(t *testing.T, rights *rest.Config, arguments ...string) (text string, status int) {
	t.Helper()
	path, err := environment.Build(pluginFolder)
	if err != nil {
		t.Fatal(err)
	}
	return runPlugin(t, path, rights, arguments...)
}

func runPlugin(t *testing.T, path string, rights *rest.Config, arguments ...string) (text string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	var stderr bytes.Buffer
	command := exec.CommandContext(ctx, path, append(arguments, "--kubeconfig", env.Kubeconfig(t, rights), "--cache-dir", t.TempDir())...)
	command.Stderr = &stderr
	start := time.Now()
	output, err := command.Output()
	if took := time.Since(start); took > answersWithin {
		t.Errorf("the plugin took %v: %q", took, arguments)
	}
	if stderr.Len() > 0 {
		t.Logf("stderr: %s", stderr.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if secret := env.Leak(string(output)); secret != "" {
		t.Errorf("the plugin shows a secret: %s", secret)
	}
	return string(output), command.ProcessState.ExitCode()
}
