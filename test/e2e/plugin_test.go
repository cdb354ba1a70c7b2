//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/test/environment"
)

// finding is what the plugin says of one thing.
type finding struct{ Link, State, Piece, Text string }

// chain is what the plugin says of a pod.
type chain struct {
	Broken string
	Role   struct{ AccessKeyID string }
	Links  []finding
}

// plugin runs `kubectl iam4kube`.
func plugin(t *testing.T, into any, args ...string) (status int) {
	t.Helper()
	// Of the version that the images say.
	path, err := environment.Build("cmd/kubectl-iam4kube", "-ldflags=-X github.com/iam4kube/iam4kube/internal/buildinfo.version="+tag)
	if err != nil {
		t.Fatal(err)
	}
	return runPlugin(t, path, into, args...)
}

// runPlugin runs one by its program, as kubectl finds it.
func runPlugin(t *testing.T, path string, into any, args ...string) (status int) {
	t.Helper()
	cmd, err := machine.Kubectl(t.Context(), append(append([]string{"iam4kube"}, args...), "-o", "json")...)
	if err != nil {
		t.Fatal(err)
	}
	var output, failure bytes.Buffer
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(path)+string(os.PathListSeparator)+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = &output, &failure
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err := json.Unmarshal(output.Bytes(), into); err != nil {
		t.Fatalf("%v: %s%s", err, output.String(), failure.String())
	}
	return cmd.ProcessState.ExitCode()
}

// On a cluster with nodes, certificates of cert-manager and a webhook that runs, nothing is wrong
// and nothing hidden, and pods are followed to their keys by both ways. A pod that cannot get one
// because no server is ready is told of at its init container.
func TestPlugin(t *testing.T) {
	eventually(t, "a check without anything wrong", func() bool {
		var report struct{ Categories []struct{ Checks []finding } }
		if plugin(t, &report, "check", "--wait", "1m") != 0 {
			return false
		}
		for _, category := range report.Categories {
			for _, f := range category.Checks {
				// Roles of other tests are refused on purpose.
				if f.State != "ok" && f.Link != "roles" {
					t.Logf("%+v", f)
					return false
				}
			}
		}
		return len(report.Categories) >= 6
	})
	for _, way := range []path{nodeWide, inPod} {
		ns := namespace(t, way)
		role(t, ns, "role-01")
		pod := clientPod(ns, "role-01", "get")
		pod.Spec.Containers[0].Args = append(pod.Spec.Containers[0].Args, "http://169.254.169.254/latest/meta-data/iam/security-credentials/role-01")
		pod.Spec.Containers = append(pod.Spec.Containers, clientPod(ns, "role-01", "wait").Spec.Containers...)
		pod.Spec.Containers[1].Name = "stays"
		create(t, pod)
		waitPod(t, ns, pod.Name, running)
		var whole chain
		eventually(t, "the chain of a pod that has asked, "+string(way), func() bool {
			return plugin(t, &whole, "why", "pod/"+pod.Name, "-n", ns) == 0 && whole.Role.AccessKeyID != ""
		})
		for _, link := range whole.Links {
			if link.State != "ok" {
				t.Errorf("%s: %+v", way, link)
			}
		}
	}

	t.Cleanup(func() { reinstall(t) })
	mustKubectl(t, "--namespace="+own, "scale", "deployment/iam4kube-server", "--replicas=0")
	ns := namespace(t, inPod)
	role(t, ns, "role-02")
	create(t, clientPod(ns, "role-02", "wait"))
	eventually(t, "the pod that finds no server", func() bool {
		var whole chain
		return plugin(t, &whole, "why", "pod/role-02", "-n", ns) == 1 && strings.HasPrefix(whole.Broken, "init-")
	})
	eventually(t, "the check that names the server", func() bool {
		var report struct{ Categories []struct{ Checks []finding } }
		broken := ""
		status := plugin(t, &report, "check")
		for _, category := range report.Categories {
			for _, f := range category.Checks {
				if f.State == "broken" {
					broken += f.Piece + " "
				}
			}
		}
		return status == 1 && broken == "no-server "
	})
}
