//go:build e2e

// Package quickstart runs README's quick start on a cluster that has nothing of iam4kube: `make
// quick-start`. AWS is a fake (test/fakests) in a namespace of its own.
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
	tag = "demo"
	// most commands that README may need.
	most = 5
	who  = "arn:aws:sts::111122223333:assumed-role/orders/shop@orders"
)

func TestMain(m *testing.M) {
	cluster.Init()
	os.Exit(m.Run())
}

// setup is an empty cluster, and where the fake AWS is.
type setup struct {
	machine cluster.Cluster
	path    string
	sts     string
}

func start(t *testing.T) *setup {
	t.Helper()
	s := &setup{}
	archives, err := images.Build(t.Context(), tag, os.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	if s.machine, err = cluster.Default(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.machine.Stop(); err != nil {
			t.Error(err)
		}
	})
	nodes := []cluster.Node{{Name: "one", Zone: "eu-west-1a"}, {Name: "two", Zone: "eu-west-1b"}}
	if err := s.machine.Start(t.Context(), cluster.Options{ProxyMode: "nftables", CNI: "ptp", Nodes: nodes, Images: archives}, os.Stdout); err != nil {
		t.Fatal(err)
	}
	helms, err := controlplane.BuildHelm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kubectl, err := s.machine.Kubectl(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	if err := os.Symlink(helms[len(helms)-1], filepath.Join(programs, "helm")); err != nil {
		t.Fatal(err)
	}
	s.path = programs + ":" + filepath.Dir(kubectl.Path) + ":" + os.Getenv("PATH")
	s.aws(t)
	return s
}

// aws starts the fake, as manifests/demo does, with the roles that README names.
func (s *setup) aws(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(checkout.Path("manifests", "demo", "sts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	manifest := strings.NewReplacer("namespace: iam4kube", "namespace: aws", "iam4kube/fakests", "iam4kube/fakests:"+tag).Replace(string(text))
	file := filepath.Join(t.TempDir(), "sts.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(t, "kubectl create namespace aws")
	s.run(t, "kubectl -n aws create configmap iam4kube-demo-sts --from-file=manifests/demo/accounts.json")
	s.run(t, "kubectl apply -f "+file)
	s.run(t, "kubectl -n aws rollout status deployment/iam4kube-demo-sts --timeout 2m")
	s.sts = "http://" + s.run(t, "kubectl -n aws get service iam4kube-demo-sts -o jsonpath={.spec.clusterIP}")
}

// run is what a user types in the checkout.
func (s *setup) run(t *testing.T, command string) (output string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 16*time.Minute)
	defer stop()
	kubectl, err := s.machine.Kubectl(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	home := t.TempDir()
	cmd.Env = append(slices.Clone(kubectl.Env), "PATH="+s.path, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home)
	cmd.Dir = checkout.Path()
	text, err := cmd.CombinedOutput()
	if err != nil {
		pods, _ := exec.CommandContext(ctx, kubectl.Path, "--kubeconfig", s.machine.Kubeconfig(), "describe", "pods", "-A").CombinedOutput()
		t.Fatalf("%s: %v: %s\n%s", command, err, text, pods)
	}
	return string(text)
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
	block := regexp.MustCompile("(?s)\n```sh\n(.*?)\n```").FindStringSubmatch(section)
	if block == nil {
		t.Fatal("README has no quick start")
	}
	for line := range strings.SplitSeq(strings.ReplaceAll(block[1], "\\\n", ""), "\n") {
		if !strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	return all
}

// here is the command with the fake AWS, and the AWS CLI of this machine, because the nodes of the
// cluster reach no registry. Each of these is in README, or the test would run something else.
func (s *setup) here(t *testing.T, all []string) []string {
	t.Helper()
	text := strings.Join(all, "\n")
	for readme, here := range map[string]string{
		"image.registry=registry.example/iam4kube": "image.registry=registry.invalid/iam4kube",
		"image.tag=v0.1.0":                         "image.tag=" + tag,
		"server.env.AWS_REGION=eu-central-1": "server.env.AWS_REGION=eu-west-1,server.env.AWS_ENDPOINT_URL_STS=" + s.sts +
			",server.env.AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE,server.env.AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
		"--image public.ecr.aws/aws-cli/aws-cli": "--image registry.invalid/iam4kube-test/client:" + tag + " --env HOME=/tmp --env AWS_ENDPOINT_URL_STS=" + s.sts,
		"--env AWS_REGION=eu-central-1":          "--env AWS_REGION=eu-west-1",
		`--overrides '{"spec": {"serviceAccountName": "orders"}}'`: `--override-type strategic --overrides '{"spec": {"serviceAccountName": "orders", "volumes": [{"name": "usr", "hostPath": {"path": "/usr"}}],` +
			` "containers": [{"name": "whoami", "command": ["aws"], "volumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": true}]}]}}'`,
	} {
		if strings.Count(text, readme) != 1 {
			t.Fatalf("README has %q %d times:\n%s", readme, strings.Count(text, readme), text)
		}
		text = strings.Replace(text, readme, here, 1)
	}
	return strings.Split(text, "\n")
}

// TestQuickStart: from a cluster with nothing of iam4kube to the first credentials in a pod, by the
// commands of README, no more than five. Then an injected pod, by the policy alone.
func TestQuickStart(t *testing.T) {
	all := commands(t)
	if len(all) > most {
		t.Errorf("%d commands: %q", len(all), all)
	}
	s := start(t)
	began := time.Now()
	output := ""
	for i, command := range s.here(t, all) {
		before := time.Now()
		output = s.run(t, command)
		fmt.Printf("%d. %s: %.1f s\n", i+1, strings.Join(strings.Fields(all[i])[:3], " "), time.Since(before).Seconds())
	}
	fmt.Printf("the first credentials after %d commands and %.1f s\n", len(all), time.Since(began).Seconds())
	if !strings.Contains(output, who) {
		t.Errorf("the pod is %s", output)
	}
	if webhooks := s.run(t, "kubectl get mutatingwebhookconfigurations -o name"); strings.Contains(webhooks, "iam4kube") {
		t.Errorf("there is %s", webhooks)
	}
	s.run(t, "kubectl label namespace shop iam4kube.io/inject=enabled")
	injected := strings.Replace(s.here(t, all)[len(all)-1], "-q -i --rm ", "", 1)
	s.run(t, injected)
	s.run(t, "kubectl -n shop wait --for 'jsonpath={.status.phase}=Succeeded' --timeout 2m pod/whoami")
	if first := s.run(t, "kubectl -n shop get pod whoami -o 'jsonpath={.spec.initContainers[*].name} {.status.initContainerStatuses[0].state.terminated.exitCode}'"); first != "iam4kube-ip2service 0" {
		t.Errorf("the injected pod has %q", first)
	}
	if output := s.run(t, "kubectl -n shop logs whoami -c whoami"); !strings.Contains(output, who) {
		t.Errorf("the injected pod is %s", output)
	}
}
