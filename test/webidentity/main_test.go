// Package webidentity tests the server without AWS credentials: the program itself, a real API
// server, an issuer's documents over https, and the fake STS, which verifies each token by them.
// The tests share the Secret with the issuer's key, and run one after the other.
package webidentity

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// keysFor is how long the fake STS goes by the keys that it has read.
const keysFor = 2 * time.Second

var env *environment.Environment

func TestMain(m *testing.M) {
	os.Exit(environment.Main(m, func(e *environment.Environment) { env = e }, func(c *fakests.Config) { c.KeysFor = keysFor }))
}

// allow gives the server what the component gives it.
func allow(t *testing.T) {
	t.Helper()
	if err := env.ApplyFiles(t.Context(), checkout.Path("manifests", "components", "web-identity", "rbac.yaml")); err != nil {
		t.Fatal(err)
	}
}

// issue runs `server issuer` with an admin's rights, and returns what it prints.
func issue(t *testing.T, url string, arguments ...string) (documents, said string, err error) {
	t.Helper()
	return issueTrusting(t, "", url, arguments...)
}

// issueTrusting is issue where the URL is read, by certificates of this authority.
func issueTrusting(t *testing.T, caFile, url string, arguments ...string) (documents, said string, err error) {
	t.Helper()
	kubeconfig := env.Kubeconfig(t, env.ControlPlane.Config())
	command := exec.Command(environment.Program(t), append([]string{"issuer"}, append(arguments, "--issuer", url, "--kubeconfig", kubeconfig)...)...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	command.Env = environment.Environ()
	if caFile != "" {
		command.Env = append(command.Env, "SSL_CERT_FILE="+caFile)
	}
	err = command.Run()
	for _, text := range []string{stdout.String(), stderr.String()} {
		if strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, `"d":`) {
			t.Errorf("server issuer %q prints a private key", arguments)
		}
	}
	return stdout.String(), stderr.String(), err
}

func mustIssue(t *testing.T, url string, arguments ...string) (said string) {
	t.Helper()
	_, said, err := issue(t, url, arguments...)
	if err != nil {
		t.Fatalf("server issuer %q: %v: %s", arguments, err, said)
	}
	return said
}

// publish puts the documents of this moment where the issuer's URL is.
func publish(t *testing.T, i *environment.Issuer) {
	t.Helper()
	folder := t.TempDir()
	mustIssue(t, i.URL, "--out", folder)
	i.Publish(t, folder)
}

// newIssuer is a web server of which the account knows, still without documents.
func newIssuer(t *testing.T) *environment.Issuer {
	t.Helper()
	allow(t)
	i := env.NewIssuer(t)
	env.STS.AddOIDCProvider(fakests.OIDCProvider{Account: environment.Account, URL: i.URL, ClientIDs: []string{"sts.amazonaws.com"}})
	return i
}

// start runs the server without an AWS credential in its environment, and with whatever would
// tell if it looked for some.
func start(t *testing.T, i *environment.Issuer, flags ...string) *environment.Server {
	t.Helper()
	metadata, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if c, err := metadata.Accept(); err == nil {
			_ = c.Close()
			t.Error("somebody asks the metadata service for credentials")
		}
	}()
	t.Cleanup(func() { _ = metadata.Close(); <-asked })
	bare := func(c *exec.Cmd) {
		c.Env = slices.DeleteFunc(c.Env, func(pair string) bool {
			name, _, _ := strings.Cut(pair, "=")
			return strings.HasPrefix(name, "AWS_") && name != "AWS_ENDPOINT_URL_STS" && name != "AWS_REGION"
		})
		url := "http://" + metadata.Addr().String()
		c.Env = append(c.Env, "SSL_CERT_FILE="+i.CAFile, "AWS_EC2_METADATA_SERVICE_ENDPOINT="+url, "AWS_CONTAINER_CREDENTIALS_FULL_URI="+url)
	}
	s, _ := env.StartProcessWith(t, bare, append([]string{"--sts-operation", "AssumeRoleWithWebIdentity", "--issuer", i.URL, "--sts-rate-limit", "1000", "--sts-rate-burst", "1000"}, flags...)...)
	return s
}

// workload is a ServiceAccount with a role that trusts it as IRSA's documentation says, and a pod.
type workload struct {
	namespace, name, arn string
	from                 netip.Addr
}

func (w workload) path() string {
	return "/latest/meta-data/iam/security-credentials/" + role.Role{ARN: w.arn}.Name()
}

// trust is the policy for a ServiceAccount's tokens of this issuer.
func trust(i *environment.Issuer, namespace, name string) fakests.Trust {
	provider := strings.TrimPrefix(i.URL, "https://")
	return fakests.Trust{
		Federated: "arn:aws:iam::" + environment.Account + ":oidc-provider/" + provider,
		StringEquals: map[string][]string{
			provider + ":sub": {"system:serviceaccount:" + namespace + ":" + name}, provider + ":aud": {"sts.amazonaws.com"},
		},
	}
}

func newNamespace(t *testing.T, name string) string {
	t.Helper()
	if err := env.CreateNamespace(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return name
}

// create makes one, with these changes to its role and these annotations: name, value, ...
func create(ctx context.Context, i *environment.Issuer, namespace, name string, change func(*fakests.Role), annotations ...string) (workload, error) {
	w := workload{namespace: namespace, name: name, from: env.Address()}
	w.arn = env.NewRole(func(r *fakests.Role) {
		r.Trust = trust(i, namespace, name)
		if change != nil {
			change(r)
		}
	})
	all := map[string]string{role.AnnotationARN: w.arn}
	for i := 0; i < len(annotations); i += 2 {
		all[annotations[i]] = annotations[i+1]
	}
	if err := env.CreateServiceAccount(ctx, controlplane.ServiceAccount{Namespace: namespace, Name: name, Annotations: all}); err != nil {
		return w, err
	}
	_, err := env.CreatePod(ctx, controlplane.Pod{Namespace: namespace, Name: name, ServiceAccount: name, IPs: []string{w.from.String()}})
	return w, err
}

func mustCreate(t *testing.T, i *environment.Issuer, namespace, name string, change func(*fakests.Role), annotations ...string) workload {
	t.Helper()
	w, err := create(t.Context(), i, namespace, name, change, annotations...)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// session asks for the pod's credentials in both ways, and returns what STS knows of them.
func (w workload) session(t *testing.T, s *environment.Server) fakests.Issued {
	t.Helper()
	var issued fakests.Issued
	for _, path := range []string{w.path(), "/v1/credentials"} {
		status, body := s.Get(t, w.from, path)
		var d struct{ AccessKeyId, SecretAccessKey, Token string }
		if err := json.Unmarshal([]byte(body), &d); status != http.StatusOK || err != nil {
			t.Fatalf("%s: %d %s", path, status, body)
		}
		var known bool
		issued, known = env.STS.Issued(d.AccessKeyId)
		if !known || issued.SecretAccessKey != d.SecretAccessKey || issued.SessionToken != d.Token || issued.RoleARN != w.arn {
			t.Fatalf("%s: not what STS has issued for %s: %s", path, w.arn, body)
		}
	}
	return issued
}

// denial is the text by which the pod's credentials are refused.
func (w workload) denial(t *testing.T, s *environment.Server) string {
	t.Helper()
	status, body := s.Get(t, w.from, "/v1/credentials")
	if status != http.StatusForbidden {
		t.Errorf("%d %s", status, body)
	}
	return body
}

func mustSay(t *testing.T, text string, parts ...string) {
	t.Helper()
	if secret := env.Leak(text); secret != "" {
		t.Errorf("a secret is in %s", secret)
	}
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not say %q", text, part)
		}
	}
}

// debian runs a program of Debian's python3, because that has the packages of Debian.
func debian(t *testing.T, program string, environ []string, arguments ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program.py")
	if err := os.WriteFile(path, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/usr/bin/python3", append([]string{path}, arguments...)...)
	command.Env = append(os.Environ(), environ...)
	var stderr bytes.Buffer
	command.Stderr = io.MultiWriter(&stderr)
	output, err := command.Output()
	if err != nil {
		t.Fatalf("python3, with Debian's package python3-jwt: %v: %s", err, stderr.String())
	}
	return string(output)
}

// attempts are those at STS for these roles.
func attempts(arns ...string) (of []fakests.Attempt) {
	for _, a := range env.STS.Attempts() {
		if slices.Contains(arns, a.RoleARN) {
			of = append(of, a)
		}
	}
	return of
}

func outcomes(all []fakests.Attempt) string {
	count := map[string]int{}
	for _, a := range all {
		count[a.Outcome]++
	}
	return fmt.Sprint(count)
}
