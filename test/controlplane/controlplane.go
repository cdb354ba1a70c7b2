// Package controlplane runs a real Kubernetes API server with its etcd on loopback for
// tests, builds both from source, and breaks the connection to it in the ways that
// networks and restarts do.
//
// There are no controllers, no scheduler and no kubelet: what they would write (a pod's
// status above all) is written by the methods in objects.go. RBAC is enforced, so a
// client made by ServiceAccountConfig can do what its manifests allow and no more.
// Pods on real nodes are none of this package's business.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Options of a control plane; the zero value is complete.
type Options struct {
	// APIServerArgs are further arguments of kube-apiserver. They come last, so they
	// override those of the harness.
	APIServerArgs []string
	// ServiceAccountAdmission lets the API server refuse pods whose ServiceAccount does
	// not exist, and mount its token into the others. Nobody creates each namespace's
	// default here.
	ServiceAccountAdmission bool
}

// ControlPlane is a running etcd and kube-apiserver. Its methods are not meant for
// concurrent use, except those that only talk to the API.
type ControlPlane struct {
	// Client has all rights, no rate limit, and speaks protobuf.
	Client kubernetes.Interface

	options   Options
	binDir    string
	program   string // the API server's
	dir       string
	etcdPort  port
	peerPort  port
	apiPort   port
	etcd      *process
	apiServer *process
	config    *rest.Config
	// policy is how both are scheduled, of sched(7).
	policy uint32
}

// Start builds what is missing, starts etcd and kube-apiserver on free ports of
// 127.0.0.1 and returns when the API server is ready. Everything ends with Stop, or with
// the test process.
func Start(ctx context.Context, options Options) (*ControlPlane, error) {
	binDir, err := Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("building the control plane: %w", err)
	}
	program, err := BuildAPIServer(ctx)
	if err != nil {
		return nil, fmt.Errorf("building the API server: %w", err)
	}
	dir, err := os.MkdirTemp("", "iam4kube-controlplane-")
	if err != nil {
		return nil, err
	}
	cp := &ControlPlane{options: options, binDir: binDir, program: program, dir: dir}
	if err := cp.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the control plane: %w", err), cp.Stop())
	}
	return cp, nil
}

func (cp *ControlPlane) start(ctx context.Context) error {
	for _, p := range []*port{&cp.etcdPort, &cp.peerPort, &cp.apiPort} {
		var err error
		if *p, err = reservePort(); err != nil {
			return err
		}
	}
	credentials, err := writeFiles(cp.dir)
	if err != nil {
		return err
	}
	cp.config = &rest.Config{
		Host:            "https://" + cp.apiPort.addr(),
		BearerToken:     credentials.adminToken,
		TLSClientConfig: rest.TLSClientConfig{CAData: credentials.caCertificate},
		QPS:             -1,
	}
	clientConfig := cp.Config()
	clientConfig.ContentType = runtime.ContentTypeProtobuf
	if cp.Client, err = kubernetes.NewForConfig(clientConfig); err != nil {
		return err
	}
	cp.etcd, err = startProcess(cp.path("etcd.log"), filepath.Join(cp.binDir, "etcd"), cp.etcdArgs()...)
	if err != nil {
		return err
	}
	return cp.StartAPIServer(ctx)
}

// Stop ends both processes and removes their files. It does not wait for clients.
func (cp *ControlPlane) Stop() error {
	err := cp.StopAPIServer()
	if cp.etcd != nil {
		err = errors.Join(err, cp.etcd.kill())
	}
	for _, p := range []port{cp.etcdPort, cp.peerPort, cp.apiPort} {
		p.release()
	}
	return errors.Join(err, os.RemoveAll(cp.dir))
}

// StopAPIServer kills the API server: connections break, new ones are refused. The port
// stays reserved and etcd keeps running.
func (cp *ControlPlane) StopAPIServer() error {
	if cp.apiServer == nil {
		return nil
	}
	err := cp.apiServer.kill()
	cp.apiServer = nil
	return err
}

// StartAPIServer starts the API server (again) with the same port, certificate, tokens
// and data, and returns when it is ready.
func (cp *ControlPlane) StartAPIServer(ctx context.Context) error {
	if cp.apiServer != nil {
		return errors.New("the API server is running")
	}
	var err error
	cp.apiServer, err = startProcess(cp.path("kube-apiserver.log"), cp.program, cp.apiServerArgs()...)
	if err != nil {
		return err
	}
	if cp.policy != unix.SCHED_NORMAL { // else it is as whoever starts it
		if err := cp.schedule(cp.apiServer); err != nil {
			return err
		}
	}
	return cp.waitReady(ctx)
}

// Yield lets API server and etcd have from now on, also where they are started again, no processor
// that somebody else wants (SCHED_IDLE, sched(7)): in a cluster they have their own. Or no longer.
func (cp *ControlPlane) Yield(yields bool) error {
	cp.policy = unix.SCHED_NORMAL
	if yields {
		cp.policy = unix.SCHED_IDLE
	}
	return errors.Join(cp.schedule(cp.apiServer), cp.schedule(cp.etcd))
}

// schedule is for all threads that the process has. Those that it starts do as they do.
func (cp *ControlPlane) schedule(p *process) error {
	pid := p.cmd.Process.Pid
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		err = unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: cp.policy}, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("set how %s is scheduled: %w", p.cmd.Path, err)
		}
	}
	return nil
}

// waitReady polls: whoever starts a process has no other way to learn that it listens.
func (cp *ControlPlane) waitReady(ctx context.Context) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		if err := cp.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err == nil {
			return nil
		} else if ctx.Err() != nil {
			return fmt.Errorf("the API server is not ready: %w", err)
		}
		select {
		case <-ctx.Done():
		case <-cp.etcd.done:
			return cp.etcd.exited()
		case <-cp.apiServer.done:
			return cp.apiServer.exited()
		case <-ticker.C:
		}
	}
}

// Config has all rights (group system:masters) and no rate limit.
func (cp *ControlPlane) Config() *rest.Config { return rest.CopyConfig(cp.config) }

// ServiceAccountConfig has the rights of a ServiceAccount, by a token that the API
// server issues for it and that lasts an hour. Rate limits are client-go's defaults.
func (cp *ControlPlane) ServiceAccountConfig(ctx context.Context, namespace, name string) (*rest.Config, error) {
	request, err := cp.Client.CoreV1().ServiceAccounts(namespace).
		CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("requesting a token of ServiceAccount %s/%s: %w", namespace, name, err)
	}
	config := rest.AnonymousClientConfig(cp.config)
	config.BearerToken = request.Status.Token
	config.QPS = 0
	return config, nil
}

// Kubeconfig writes a file for --kubeconfig, see WriteKubeconfig, that goes with the test.
func (cp *ControlPlane) Kubeconfig(t testing.TB, config *rest.Config) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "kubeconfig")
	if err := WriteKubeconfig(path, config); err != nil {
		t.Fatal(err)
	}
	return path
}

// WriteKubeconfig writes a file for --kubeconfig that says the same as config.
func WriteKubeconfig(path string, config *rest.Config) error {
	file := clientcmdapi.NewConfig()
	file.Clusters["test"] = &clientcmdapi.Cluster{
		Server:                   config.Host,
		CertificateAuthorityData: config.CAData,
		TLSServerName:            config.ServerName,
	}
	file.AuthInfos["test"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	file.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	file.CurrentContext = "test"
	return clientcmd.WriteToFile(*file, path)
}

func (cp *ControlPlane) path(name string) string { return filepath.Join(cp.dir, name) }
