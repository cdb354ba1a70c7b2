//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Uninstalling by the commands that stand in manifests/uninstall removes the rules from every
// node, and with that opens the node's metadata service to the pods that only the node covered.
// Injected pods stay closed. Installed again, all get their roles, those that ran before, too.
func TestUninstallAndInstallAgain(t *testing.T) {
	t.Cleanup(func() { reinstall(t) })
	injected := knockers(t, inPod)
	wantServed(t, injected)
	ns := namespace(t, nodeWide)
	role(t, ns, "role-01")
	ordinary := onWorker(clientPod(ns, "role-01", "wait"), "worker-1")
	create(t, ordinary)
	ordinary = waitPod(t, ns, ordinary.Name, running)

	for _, command := range uninstallCommands(t) {
		shell(t, ".", command)
		if strings.Contains(command, "delete -k "+both) { // ip2service has ended, its rules have not
			wantLeadNowhere(t)
		}
	}
	wantNothingOnNodes(t)
	untilKnocks(t, injected, always(func(k knocks) bool { return k.only("refused", "timeout") }))
	// As the documentation says. This is also what shows that covered pods are.
	var a answer
	leaks := leaking(t, func() { a, _ = once(t, ns, ordinary.Name) })
	if leaks == 0 || !strings.Contains(a.Error, "not by iam4kube") {
		t.Errorf("a pod that nothing covers: %d packets, %+v, want to be answered by the node's metadata service", leaks, a)
	}

	reinstall(t)
	wantServed(t, injected)
	again, err := once(t, ns, ordinary.Name)
	if err != nil {
		t.Error(err)
	}
	wantOwn(t, ordinary, "role-01", again)
	for i, pod := range newPods(t, append([]*corev1.Pod{ordinary}, injected...), "once") {
		pod = waitPod(t, pod.Namespace, pod.Name, ended)
		if a := decode(t, logs(t, pod.Namespace, pod.Name, "client")); a.Error != "" {
			t.Errorf("pod %d: %+v", i, a)
		}
	}
	wantNoLeaks(t)
}

// wantLeadNowhere: workers' rules are there, without an endpoint.
func wantLeadNowhere(t *testing.T) {
	t.Helper()
	for _, node := range []string{"worker-1", "worker-2"} {
		if rules := onNode(t, node, "nft", "list", "table", "ip", "iam4kube"); strings.Contains(rules, "dnat to") {
			t.Errorf("%s still routes to servers that are gone:\n%s", node, rules)
		}
	}
}

func wantNothingOnNodes(t *testing.T) {
	t.Helper()
	for _, node := range []string{"server-1", "server-2", "worker-1", "worker-2"} {
		if tables := onNode(t, node, "nft", "list", "tables"); strings.Contains(tables, "iam4kube") {
			t.Errorf("%s still has\n%s", node, tables)
		}
		// The folder stays where it is a container's mount.
		if pins := onNode(t, node, "sh", "-c", "ls /sys/fs/bpf/iam4kube 2>&1 || true"); strings.Contains(pins, "iam4kube_") {
			t.Errorf("%s still has\n%s", node, pins)
		}
	}
}

// uninstallCommands are what the user reads, with the overlays of the tests, which have the
// images.
func uninstallCommands(t *testing.T) (commands []string) {
	t.Helper()
	text, err := os.ReadFile("../../manifests/uninstall/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if command, ok := strings.CutPrefix(line, "#   "); ok {
			commands = append(commands, strings.ReplaceAll(strings.TrimSpace(command), "manifests/", overlays+"/"))
		}
	}
	if len(commands) < 7 {
		t.Fatalf("commands: %q", commands)
	}
	return commands
}

// shell runs what a user types in a folder.
func shell(t *testing.T, dir, command string) (output string) {
	t.Helper()
	kubectl, err := machine.Kubectl(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
	cmd.Dir = dir
	cmd.Env = append(slices.Clone(kubectl.Env), "PATH="+filepath.Dir(kubectl.Path)+":"+os.Getenv("PATH"))
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, text)
	}
	return string(text)
}
