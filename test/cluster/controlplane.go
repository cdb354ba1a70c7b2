package cluster

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/client-go/util/retry"
)

// inside is the API server's URL for the cluster's own programs.
func inside() string {
	return "https://" + net.JoinHostPort(nodeAddress(0), fmt.Sprint(apiPort))
}

// userFile is the kubeconfig of a program of the cluster.
func (s *settings) userFile(user string) string {
	return filepath.Join(s.Dir, "pki", user+".kubeconfig")
}

// makeCredentials writes certificates, keys and kubeconfigs. The users are those that
// Kubernetes' default RBAC knows.
func (s *supervisor) makeCredentials() error {
	var err error
	if s.pki, err = newPKI(filepath.Join(s.Dir, "pki")); err != nil {
		return err
	}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(apiService), net.ParseIP(nodeAddress(0))}
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"}
	tokens, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return err
	}
	outside := "https://" + net.JoinHostPort("127.0.0.1", fmt.Sprint(s.APIPort))
	const administrators = "system:masters"
	err = errors.Join(
		s.pki.write("apiserver", pkix.Name{CommonName: "kube-apiserver"}, addresses, names...),
		s.pki.write("kubelet-client", pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{administrators}}, nil),
		os.WriteFile(s.pki.path("token.key"), tokens, 0o600),
		s.pki.kubeconfig(filepath.Join(s.Dir, "kubeconfig"), outside, "admin", administrators),
		s.pki.kubeconfig(s.userFile("admin"), inside(), "admin", administrators),
	)
	for _, user := range []string{"kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		err = errors.Join(err, s.pki.kubeconfig(s.userFile(user), inside(), "system:"+user))
	}
	for i, node := range s.Nodes {
		err = errors.Join(err, s.pki.write(node.Name, pkix.Name{CommonName: node.Name}, []net.IP{net.ParseIP(nodeAddress(i))}))
		err = errors.Join(err, s.pki.kubeconfig(s.userFile(node.Name), inside(), "system:node:"+node.Name, "system:nodes"))
	}
	return err
}

// arguments of the programs of the control plane.
func (s *supervisor) arguments(name string) []string {
	pki := s.pki.path
	client := []string{
		"--kubeconfig=" + s.userFile(name), "--authentication-kubeconfig=" + s.userFile(name),
		"--authorization-kubeconfig=" + s.userFile(name), "--leader-elect=false", "--bind-address=127.0.0.1",
	}
	switch name {
	case "etcd":
		return []string{
			filepath.Join(s.BinDir, name), "--data-dir=" + filepath.Join(s.Dir, "etcd"), "--log-level=warn", "--unsafe-no-fsync",
		}
	case "kube-apiserver":
		return []string{
			filepath.Join(s.BinDir, name),
			"--etcd-servers=http://127.0.0.1:2379",
			"--bind-address=0.0.0.0",
			"--secure-port=" + fmt.Sprint(apiPort),
			"--advertise-address=" + nodeAddress(0),
			"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
			"--client-ca-file=" + pki("ca.crt"),
			// Scheduler and controller-manager wait for them. Nobody has a certificate of that name.
			"--requestheader-client-ca-file=" + pki("ca.crt"), "--requestheader-allowed-names=front-proxy",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--kubelet-client-certificate=" + pki("kubelet-client.crt"), "--kubelet-client-key=" + pki("kubelet-client.key"),
			"--kubelet-certificate-authority=" + pki("ca.crt"),
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file=" + pki("token.key"), "--service-account-signing-key-file=" + pki("token.key"),
			"--service-cluster-ip-range=" + serviceRange,
			"--authorization-mode=Node,RBAC",
			// A kubelet cannot give its node a label such as that of the server's nodes.
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
		}
	case "kube-controller-manager":
		return append([]string{
			filepath.Join(s.BinDir, name), "--service-account-private-key-file=" + pki("token.key"), "--root-ca-file=" + pki("ca.crt"),
			"--cluster-cidr=" + PodNetwork, "--allocate-node-cidrs=false", "--use-service-account-credentials=true",
		}, client...)
	case "kube-scheduler":
		return append([]string{filepath.Join(s.BinDir, name)}, client...)
	case certManager:
		return []string{s.CertManager, "--kubeconfig=" + s.userFile("admin")}
	}
	return nil
}

const certManager = "cert-manager"

// startProgram starts a program of the control plane in the network namespace of the first
// node, so that the API server reaches webhooks as pods reach Services: by kube-proxy.
func (s *supervisor) startProgram(name string) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	arguments := s.arguments(name)
	if arguments == nil {
		return errors.New("no such program")
	}
	if p, ok := s.programs[name]; ok && p.running() {
		return errors.New("it is running")
	}
	namespace := fmt.Sprintf("--net=/proc/%d/ns/net", s.nodes[s.Nodes[0].Name].cmd.Process.Pid)
	var err error
	s.programs[name], err = start(s.Dir, name, exec.Command("nsenter", append([]string{namespace, "--"}, arguments...)...))
	return err
}

func (s *supervisor) startControlPlane() error {
	for _, name := range []string{"etcd", "kube-apiserver"} {
		if err := s.startProgram(name); err != nil {
			return err
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.userFile("admin"))
	if err != nil {
		return err
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if err := s.wait("the API server is ready", func(ctx context.Context) bool {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error() == nil
	}); err != nil {
		return err
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		if err := s.startProgram(name); err != nil {
			return err
		}
	}
	// On a busy machine the API server gives up on some of them.
	var last error
	if err := s.wait("cert-manager's resources are known", func(context.Context) bool {
		last = command(filepath.Join(s.BinDir, "kubectl"), "--kubeconfig="+s.userFile("admin"), "apply", "--server-side", "-f", s.CRDs)
		return last == nil
	}); err != nil {
		return errors.Join(err, last)
	}
	if err := s.startProgram(certManager); err != nil {
		return err
	}
	for _, node := range s.Nodes {
		if err := s.admit(client, node); err != nil {
			return err
		}
	}
	return s.wait("pods can be made", func(ctx context.Context) bool {
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err == nil
	})
}

// admit waits until a node is ready and gives it the labels that it cannot give itself.
func (s *supervisor) admit(client kubernetes.Interface, node Node) error {
	if err := s.wait("node "+node.Name+" is ready", func(ctx context.Context) bool {
		object, err := client.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
		if err != nil {
			return false
		}
		for _, condition := range object.Status.Conditions {
			if condition.Type == corev1.NodeReady {
				return condition.Status == corev1.ConditionTrue
			}
		}
		return false
	}); err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		object, err := client.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		maps.Copy(object.Labels, node.Labels)
		_, err = client.CoreV1().Nodes().Update(ctx, object, metav1.UpdateOptions{})
		return err
	})
}

// wait gives up early if a process has ended.
func (s *supervisor) wait(what string, ready func(context.Context) bool) error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	ended := ""
	if !until(func() bool {
		ended = s.ended()
		return ended != "" || ready(ctx)
	}) {
		return fmt.Errorf("not within %s: %s; see %s", patience, what, filepath.Join(s.Dir, "log"))
	}
	if ended != "" {
		return fmt.Errorf("%s ended before %s, see %s", ended, what, filepath.Join(s.Dir, "log", ended+".log"))
	}
	s.say("%s", what)
	return nil
}

// ended names a process that should run and does not.
func (s *supervisor) ended() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, processes := range []map[string]*program{s.nodes, s.programs} {
		for name, p := range processes {
			if !p.running() {
				return name
			}
		}
	}
	return ""
}
