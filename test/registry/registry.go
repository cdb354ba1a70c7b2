// Package registry runs Debian's docker-registry for tests, and brings releases into it by the commands
// of docs/release.md. What is in a release is package release's.
package registry

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	certutil "k8s.io/client-go/util/cert"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/docs"
)

// Registry is a running one.
type Registry struct {
	// Address is host:port.
	Address string
	// Certificate is the file of the one that it signed itself.
	Certificate string

	command func(args ...string) (*exec.Cmd, error)
	environ []string
}

// Start starts one on a free port of an address. command makes those of the place that it and its
// clients run in, and that has the address.
func Start(t testing.TB, address net.IP, command func(args ...string) (*exec.Cmd, error)) *Registry {
	t.Helper()
	cache, err := controlplane.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	helms, err := controlplane.BuildHelm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	certificate, key, err := certutil.GenerateSelfSignedCertKey(address.String(), []net.IP{address}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	configuration := fmt.Sprintf("{version: 0.1, storage: {filesystem: {rootdirectory: %q}}, http: {addr: '%s:0', tls: {certificate: %q, key: %q}}}",
		path("storage"), address, path("tls.crt"), path("tls.key"))
	if err := errors.Join(
		os.WriteFile(path("tls.crt"), certificate, 0o600), os.WriteFile(path("tls.key"), key, 0o600),
		os.WriteFile(path("config.yaml"), []byte(configuration), 0o600),
		os.Mkdir(path("bin"), 0o755), os.Symlink(helms[1], path("bin/helm")),
	); err != nil {
		t.Fatal(err)
	}
	r := &Registry{
		Certificate: path("tls.crt"), command: command,
		environ: append(os.Environ(), "SSL_CERT_FILE="+path("tls.crt"), "PATH="+path("bin")+":"+os.Getenv("PATH"), "HELM_CACHE_HOME="+path("helm")),
	}
	cmd, err := command(filepath.Join(cache, "docker-registry", "docker-registry"), "serve", path("config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; `make test-tools` brings it", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed, as asked
	})
	var said strings.Builder
	for lines := bufio.NewScanner(log); r.Address == "" && lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if _, after, ok := strings.Cut(lines.Text(), "listening on "); ok {
			r.Address, _, _ = strings.Cut(after, ",")
		}
	}
	if r.Address == "" {
		t.Fatalf("the registry says\n%s", said.String())
	}
	go func() { _, _ = io.Copy(io.Discard, log) }() // until it is killed
	return r
}

// Run runs a user's commands in a folder. They trust the registry, and find Helm as `helm`.
func (r *Registry) Run(t testing.TB, dir, commands string) (output []byte) {
	t.Helper()
	cmd, err := r.command("bash", "-euo", "pipefail", "-c", "cd "+dir+"; "+commands)
	if err != nil {
		t.Fatal(err)
	}
	var failure strings.Builder
	cmd.Env, cmd.Stderr = r.environ, &failure
	if output, err = cmd.Output(); err != nil {
		t.Fatalf("%s: %v: %s", commands, err, failure.String())
	}
	return output
}

// Push brings the release of a version that is in a folder into it, as the guide says.
func (r *Registry) Push(t testing.TB, dir, version string) {
	t.Helper()
	for _, block := range docs.Blocks(t, "release.md", "sh") {
		if strings.Contains(block, "skopeo copy") && strings.Contains(block, "helm push") {
			r.Run(t, dir, strings.NewReplacer("registry.example", r.Address, "0.1.0", strings.TrimPrefix(version, "v")).Replace(block))
			return
		}
	}
	t.Fatal("docs/release.md does not say how a release is pushed")
}
