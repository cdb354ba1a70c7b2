//go:build e2e

// Package quickstart runs README's quick start on a cluster that has nothing of iam4kube: `make
// quick-start`.
package quickstart

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/cluster"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/images"
)

const (
	// tag is the demo's: images of one more would be built, and the cache keeps those of one.
	tag = "demo"
	// most commands that README may need.
	most = 5
	who  = "arn:aws:sts::111122223333:assumed-role/orders/shop@orders"
)

func TestMain(m *testing.M) {
	cluster.Init()
	os.Exit(m.Run())
}

// TestQuickStart: from a cluster with nothing of iam4kube to the first credentials in a pod, by the
// commands of README, no more than five; the pod was injected, and by the API server's policy alone.
func TestQuickStart(t *testing.T) {
	readme := commands(t)
	if len(readme) > most {
		t.Errorf("%d commands: %q", len(readme), readme)
	}
	u := newUser(t)
	began := time.Now()
	output := ""
	for i, command := range u.here(t, readme) {
		before := time.Now()
		output = u.run(t, command)
		fmt.Printf("%d. %s: %.1f s\n", i+1, strings.Join(strings.Fields(readme[i])[:4], " "), time.Since(before).Seconds())
	}
	fmt.Printf("the first credentials after %d commands and %.1f s\n", len(readme), time.Since(began).Seconds())
	if !slices.Contains(strings.Split(output, "\n"), who) { // kubectl says which container's log it is
		t.Errorf("the pod is %s", output)
	}
	if webhooks := u.run(t, "kubectl get mutatingwebhookconfigurations -o name"); strings.Contains(webhooks, "iam4kube") {
		t.Errorf("there is %s", webhooks)
	}
	const initContainer = "kubectl -n shop get pod whoami -o 'jsonpath={.spec.initContainers[*].name} {.status.initContainerStatuses[0].state.terminated.exitCode}'"
	if got := u.run(t, initContainer); got != "iam4kube-ip2service 0" {
		t.Errorf("init container and exit code: %q", got)
	}
}

// commands are those of README's quick start.
func commands(t *testing.T) (all []string) {
	t.Helper()
	text, err := os.ReadFile(checkout.Path("README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Quick start\n")
	section, _, _ = strings.Cut(section, "\n## ")
	block := regexp.MustCompile("(?s)\n```sh\n(.*?\n)```").FindStringSubmatch(section)
	if block == nil {
		t.Fatal("README has no quick start")
	}
	// Each begins a line, and goes on after a backslash or to the end of a here-document.
	return regexp.MustCompile(`(?m)^(.*<<'END'\n(?s:.*?)\nEND|(?:.*\\\n)*.*[^\\])\n`).FindAllString(block[1], -1)
}

// user has README's quick start, a cluster and AWS, which is a fake (test/fakests) there.
type user struct {
	machine cluster.Cluster
	path    string
	sts     string
}

func newUser(t *testing.T) *user {
	t.Helper()
	u := &user{}
	archives, err := images.Build(t.Context(), tag, os.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	if u.machine, err = cluster.Default(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.machine.Stop(); err != nil {
			t.Error(err)
		}
	})
	nodes := []cluster.Node{{Name: "one", Zone: "eu-west-1a"}, {Name: "two", Zone: "eu-west-1b"}}
	if err := u.machine.Start(t.Context(), cluster.Options{ProxyMode: "nftables", CNI: "ptp", Nodes: nodes, Images: archives}, os.Stdout); err != nil {
		t.Fatal(err)
	}
	helms, err := controlplane.BuildHelm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kubectl, err := u.machine.Kubectl(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	if err := os.Symlink(helms[len(helms)-1], filepath.Join(programs, "helm")); err != nil {
		t.Fatal(err)
	}
	u.path = programs + ":" + filepath.Dir(kubectl.Path) + ":" + os.Getenv("PATH")
	u.run(t, "kubectl apply -f test/quickstart/testdata/aws.yaml")
	u.run(t, "kubectl -n aws rollout status deployment/sts --timeout 2m")
	u.sts = "http://" + u.run(t, "kubectl -n aws get service sts -o jsonpath={.spec.clusterIP}")
	return u
}

// run is what the user types in the checkout.
func (u *user) run(t *testing.T, command string) (output string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 16*time.Minute)
	defer stop()
	kubectl, err := u.machine.Kubectl(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	home := t.TempDir()
	cmd.Env = append(slices.Clone(kubectl.Env), "PATH="+u.path, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	cmd.Dir = checkout.Path()
	text, err := cmd.CombinedOutput()
	if err != nil {
		pods, _ := exec.CommandContext(ctx, kubectl.Path, "--kubeconfig", u.machine.Kubeconfig(), "describe", "pods", "-A").CombinedOutput()
		logs, _ := exec.CommandContext(ctx, kubectl.Path, "--kubeconfig", u.machine.Kubeconfig(), "-n", "shop", "logs", "whoami").CombinedOutput()
		t.Fatalf("%s: %v: %s\n%s\n%s", command, err, text, pods, logs)
	}
	return string(text)
}

// here are the commands with the fake AWS, and with the AWS CLI of this machine, because the cluster's
// nodes reach no registry. Each of what is replaced is in README, or the test would run something else.
func (u *user) here(t *testing.T, readme []string) (all []string) {
	t.Helper()
	replaced := map[string]string{
		"image.registry=registry.example/iam4kube": "image.registry=registry.invalid/iam4kube",
		"image.tag=v0.1.0":                         "image.tag=" + tag,
		"server.env.AWS_REGION=eu-central-1": "server.env.AWS_REGION=eu-west-1,server.env.AWS_ENDPOINT_URL_STS=" + u.sts +
			",server.env.AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE,server.env.AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
		"--image public.ecr.aws/aws-cli/aws-cli": "--image registry.invalid/iam4kube-test/client:" + tag,
		"--env AWS_REGION=eu-central-1":          "--env AWS_REGION=eu-west-1",
		`--overrides '{"spec": {"serviceAccountName": "orders"}}'`: `--override-type strategic --overrides '{"spec": {"serviceAccountName": "orders", "volumes": [{"name": "usr", "hostPath": {"path": "/usr"}}],` +
			` "containers": [{"name": "whoami", "command": ["/usr/bin/python3", "/usr/bin/aws", "--endpoint-url", "` + u.sts + `"], "volumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": true}]}]}}'`,
	}
	for _, command := range readme {
		for from, to := range replaced {
			if strings.Contains(command, from) {
				command = strings.Replace(command, from, to, 1)
				delete(replaced, from)
			}
		}
		all = append(all, command)
	}
	if len(replaced) > 0 {
		t.Fatalf("not in README: %q\n%q", replaced, readme)
	}
	return all
}
