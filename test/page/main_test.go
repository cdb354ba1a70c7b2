// Package page looks at the page of a real server's debug listener with a real Chromium, in
// light and dark, and makes the pictures of docs/. `make test-page` runs it, and not `make test`:
// Chromium is a download of 80 MB.
package page

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/auxserver"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
	"github.com/iam4kube/iam4kube/test/netns"
)

var update = flag.Bool("update", false, "write the pictures of docs/images anew")

var env *environment.Environment

// TestMain runs the tests in a network namespace, because the debug listener's port is fixed.
func TestMain(m *testing.M) {
	if netns.Check() != nil { // still where modules can be fetched
		_, controlPlane := controlplane.Build(context.Background())
		_, program := environment.Build("cmd/server")
		if err := errors.Join(controlPlane, program); err != nil {
			fmt.Fprintln(os.Stderr, "page:", err)
			os.Exit(1)
		}
	}
	netns.Main(m, func() int {
		return environment.Main(m, func(e *environment.Environment) { env = e })
	})
}

const (
	within = time.Minute
	// replica is the name of the server's host, as in a Deployment.
	replica = "iam4kube-server-7c9f8d6b5-x2x4q"
	api     = "127.0.0.1:8080"
	aux     = "127.0.0.1:9090"
	many    = 5000
)

// serve starts a server in a cluster in which all that the page can show is there, and many
// roles.
func serve(t *testing.T) {
	t.Helper()
	fill(t)
	program, err := environment.Build("cmd/server")
	if err != nil {
		t.Fatal(err)
	}
	cfg := env.Config(t)
	var logs environment.Logs
	command := exec.Command("unshare", "--uts", "sh", "-c", `hostname "$0" && exec "$@"`, replica, program,
		"--listen-on", api, "--aux-listen-on", aux, "--debug", "--kubeconfig", cfg.Kubeconfig, "--max-wait", "10m", "--drain", "0s",
		"--sts-rate-limit", "2000", "--sts-rate-burst", "1000")
	command.Stderr = &logs
	command.Env = append(environment.Environ(), env.AWSEnviron()...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(logs.String()[max(0, len(logs.String())-2000):])
		}
		_ = command.Process.Signal(syscall.SIGTERM)
		if err := command.Wait(); err != nil {
			t.Error(err)
		}
	})
	environment.Eventually(t, within, func() error {
		response, err := http.Get("http://" + aux + "/readyz")
		if err != nil {
			return err
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
	wait(t)
}

// fill makes namespaces, accounts and pods.
func fill(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	addresses(t)
	var all []error
	for _, name := range []string{"payments", "search", "reports", "batch"} {
		all = append(all, env.CreateNamespace(ctx, name))
	}
	namespace, err := env.Client.CoreV1().Namespaces().Get(ctx, "reports", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	namespace.Annotations = map[string]string{role.AnnotationAllowed: "arn:aws:iam::" + environment.Account + ":role/reports-*"}
	namespace.Labels["iam4kube.io/identity"] = "token"
	_, err = env.Client.CoreV1().Namespaces().Update(ctx, namespace, metav1.UpdateOptions{})
	all = append(all, err)
	arn := func(name string) string { return "arn:aws:iam::" + environment.Account + ":role/" + name }
	for _, name := range []string{"payments-api", "search-index", "search-query"} {
		env.NewRole(func(r *fakests.Role) { r.ARN = arn(name) })
	}
	env.STS.SetFault(env.NewRole(func(r *fakests.Role) { r.ARN = arn("search-crawler") }), fakests.Fault{Effect: fakests.ServiceUnavailable, Times: 1000000})
	for account, role := range map[string]string{
		"payments/api": "payments-api", "payments/ledger": "ledger-of-nobody", "search/index": "search-index", "search/query": "search-query",
		"search/crawler": "search-crawler", "reports/daily": "search-index",
	} {
		all = append(all, createAccount(ctx, account, arn(role)))
	}
	all = append(all, createAccount(ctx, "payments/legacy", "nonsense"))
	for name, ip := range map[string]string{"server-a": "10.1.0.11", "server-b": "10.1.0.12"} {
		_, err := env.CreatePod(ctx, controlplane.Pod{Namespace: environment.Namespace, Name: name, ServiceAccount: environment.ServiceAccount, IPs: []string{ip}})
		all = append(all, err)
	}
	batch := env.NewRole(func(r *fakests.Role) { r.ARN = arn("batch-worker") })
	all = append(all, env.CreateServiceAccounts(ctx, func(yield func(controlplane.ServiceAccount) bool) {
		for i := range many {
			if !yield(controlplane.ServiceAccount{Namespace: "batch", Name: fmt.Sprintf("worker-%04d", i), Annotations: map[string]string{role.AnnotationARN: batch}}) {
				return
			}
		}
	}))
	if err := errors.Join(all...); err != nil {
		t.Fatal(err)
	}
}

// addresses gives the host one that is a pod's of the server, by which it knows the others.
func addresses(t *testing.T) {
	t.Helper()
	if output, err := exec.CommandContext(t.Context(), "ip", "address", "add", "10.1.0.11/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
}

func createAccount(ctx context.Context, account, arn string) error {
	namespace, name, _ := strings.Cut(account, "/")
	return env.CreateServiceAccount(ctx, controlplane.ServiceAccount{Namespace: namespace, Name: name, Annotations: map[string]string{role.AnnotationARN: arn}})
}

// wait lets three requests wait for a pod that does not come.
func wait(t *testing.T) {
	t.Helper()
	for range 3 {
		from := env.Address()
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
		conn, err := dialer.DialContext(t.Context(), "tcp", netip.MustParseAddrPort(api).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := conn.Write([]byte("GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
	}
}

// url is the page's.
func url(query string) string { return "http://" + auxserver.DebugAddress + "/" + query }
