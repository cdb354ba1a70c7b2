//go:build e2e

package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/iam4kube/iam4kube/test/docs"
	"github.com/iam4kube/iam4kube/test/images"
)

// lastTag is that of the images of the last release.
const lastTag = "last"

// TestUpgrade is somebody who has the last release and follows docs/operations.md to this version and
// back, while clients ask through each path: nobody may notice. What a webhook of
// one version has injected works with servers of the other, and both init images are admitted.
func TestUpgrade(t *testing.T) {
	if from == "" {
		t.Fatal("what is the last release? `make test-upgrade` says so")
	}
	u := newUser(t)
	u.installLast(t)
	l := startLoad(t, perPathOfUpgrade)
	t.Cleanup(func() { wantNoLeaks(t) })
	ns := namespace(t, inPod)
	first := u.injected(t, ns, "role-01", lastTag)
	wantNotBroken(t, first, plugin)

	l.phase(t, func() {
		u.checkOut(t, tag, lastTag)
		u.follow(t, docs.Block(t, "operations.md", "sh", "rollout resume deployment/iam4kube-webhook"), func() {
			wantVersions(t, map[string]string{"server": tag, "ip2service": tag, "webhook": lastTag})
			u.injected(t, ns, "role-02", lastTag)
			wantServedBy(t, first)
		})
		settled(t)
	}).wantNone(t)
	wantVersions(t, map[string]string{"server": tag, "ip2service": tag, "webhook": tag})
	second := u.injected(t, ns, "role-03", tag)
	wantServedBy(t, first)
	wantNotBroken(t, first, plugin)
	wantNotBroken(t, second, buildFirstPlugin(t))
	wantChangeable(t, first, second)
	u.wantListed(t, first)

	l.phase(t, func() {
		u.follow(t, docs.Block(t, "operations.md", "sh", "rollout undo"), nil)
		wantVersions(t, map[string]string{"server": tag, "ip2service": tag, "webhook": lastTag})
		u.injected(t, ns, "role-04", lastTag)
		u.checkOut(t, lastTag, tag)
		u.follow(t, docs.Block(t, "operations.md", "sh", "# the old version"), nil)
		settled(t)
	}).wantNone(t)
	wantVersions(t, map[string]string{"server": lastTag, "ip2service": lastTag, "webhook": lastTag})
	wantServedBy(t, first)
	wantServedBy(t, second)
	u.injected(t, ns, "role-05", lastTag)
	wantChangeable(t, first, second)
}

// user has what the guide says in one folder: a clone of the repository and an overlay.
type user struct {
	dir string
	// clones are the checkouts by the tags of their images.
	clones map[string]string
}

func newUser(t *testing.T) *user {
	t.Helper()
	last, _, err := images.Earlier(t.Context(), from, lastTag, os.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	this, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	u := &user{dir: t.TempDir(), clones: map[string]string{lastTag: last, tag: this}}
	err = errors.Join(os.Mkdir(filepath.Join(u.dir, "deploy"), 0o755), os.CopyFS(filepath.Join(u.dir, "sts"), os.DirFS("testdata/upgrade")))
	for _, file := range []string{"../../manifests/demo/aws/sts.yaml", both + "/accounts.json"} {
		text, e := os.ReadFile(file)
		err = errors.Join(err, e, os.WriteFile(filepath.Join(u.dir, "sts", filepath.Base(file)), text, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// checkOut puts the clone and the overlay's images at a version. The init image of the other one is
// admitted, too, if there is one.
func (u *user) checkOut(t *testing.T, version, other string) {
	t.Helper()
	overlay := docs.Block(t, "operations.md", "yaml", "name: iam4kube-net-admin")
	if other == "" {
		overlay, _, _ = strings.Cut(overlay, "patches:\n")
	}
	overlay = strings.NewReplacer("registry.example", "registry.invalid", "v0.2.0", version, "v0.1.0", other).Replace(overlay)
	overlay += "components: [../iam4kube/manifests/components/token, ../iam4kube/manifests/components/service-addresses, ../sts]\n"
	clone := filepath.Join(u.dir, "iam4kube")
	if err := os.Remove(clone); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink(u.clones[version], clone), os.WriteFile(filepath.Join(u.dir, "deploy", "kustomization.yaml"), []byte(overlay), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func (u *user) installLast(t *testing.T) {
	t.Helper()
	u.checkOut(t, lastTag, "")
	shell(t, u.dir, "kubectl apply -k iam4kube/manifests/namespace")
	// The demo's fake STS mounts what publish makes.
	if err := errors.Join(publish(t.Context()), install(t.Context(), filepath.Join(u.dir, "deploy")), injects(t.Context())); err != nil {
		t.Fatal(err)
	}
	wantVersions(t, map[string]string{"server": lastTag, "ip2service": lastTag, "webhook": lastTag})
}

// follow types a block's lines. Something is looked at before the webhook is changed.
func (u *user) follow(t *testing.T, block string, before func()) {
	t.Helper()
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "kubectl diff") { // for the reader; it fails where there is a difference
			continue
		}
		if strings.Contains(line, "rollout resume deployment/iam4kube-webhook") {
			before()
		}
		shell(t, u.dir, line)
	}
}

// injected makes a pod and returns it when it runs, with the init image of a version, and was served.
func (u *user) injected(t *testing.T, namespace, name, version string) *corev1.Pod {
	t.Helper()
	role(t, namespace, name)
	create(t, clientPod(namespace, name, "wait"))
	pod := waitPod(t, namespace, name, running)
	if image := pod.Spec.InitContainers[0].Image; !strings.HasSuffix(image, "/ip2service-init:"+version) {
		t.Errorf("%s was injected with %s, want that of %s", name, image, version)
	}
	wantServedBy(t, pod)
	return pod
}

func wantServedBy(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	a, err := once(t, pod.Namespace, pod.Name)
	if err != nil {
		t.Error(err)
	}
	wantOwn(t, pod, pod.Name, a)
}

// firstPlugin is the first commit with all commands of the plugin, which the last release has not.
const firstPlugin = "7652a3a9185abd0ddfd165602f9d840c1cc84d6f"

func buildFirstPlugin(t *testing.T) (run func(t *testing.T, into any, args ...string) (status int)) {
	t.Helper()
	folder := t.TempDir()
	if err := images.CheckOut(t.Context(), firstPlugin, folder); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "bin", "kubectl-iam4kube")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", path, ".")
	build.Dir, build.Env = filepath.Join(folder, "cmd", "kubectl-iam4kube"), append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the plugin of %s: %v: %s", firstPlugin, err, output)
	}
	return func(t *testing.T, into any, args ...string) (status int) {
		t.Helper()
		return runPlugin(t, path, into, args...)
	}
}

// wantNotBroken: a plugin finds nothing broken at a pod that works, whatever the servers' version. What
// they do not tell is not seen.
func wantNotBroken(t *testing.T, pod *corev1.Pod, run func(t *testing.T, into any, args ...string) (status int)) {
	t.Helper()
	var whole chain
	status := run(t, &whole, "why", "pod/"+pod.Name, "-n", pod.Namespace)
	t.Logf("of %s, status %d: %+v", pod.Name, status, whole)
	if status != 0 && status != 3 || whole.Broken != "" || len(whole.Links) == 0 {
		t.Errorf("%s works, and the plugin says %q with status %d", pod.Name, whole.Broken, status)
	}
	for _, link := range whole.Links {
		if link.State == "broken" || link.State == "cannot-see" && status == 0 {
			t.Errorf("status %d: %+v", status, link)
		}
	}
}

// wantChangeable: the policy about NET_ADMIN looks at every change of a pod's spec.
func wantChangeable(t *testing.T, pods ...*corev1.Pod) {
	t.Helper()
	for _, pod := range pods {
		mustKubectl(t, "--namespace="+pod.Namespace, "patch", "pod", pod.Name, "--dry-run=server", "--patch={\"spec\":{\"activeDeadlineSeconds\":86400}}")
	}
}

// wantListed: the guide's list of pods with the old init image has this one.
func (u *user) wantListed(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	want := "ip2service-init:" + lastTag + "\t" + pod.Namespace + "\t" + pod.Name + "\n"
	if list := shell(t, u.dir, docs.Block(t, "operations.md", "sh", "[.image, $pod.metadata.namespace")); !strings.Contains(list, want) {
		t.Errorf("%q is not in\n%s", want, list)
	}
}

// wantVersions waits until nothing else runs any more, by the tags of the images.
func wantVersions(t *testing.T, want map[string]string) {
	t.Helper()
	for name, version := range want {
		image := "registry.invalid/iam4kube/" + name + ":" + version
		eventually(t, image+" alone runs", func() bool {
			list := strings.Fields(mustKubectl(t, "--namespace="+own, "get", "pods", "--selector=app.kubernetes.io/name=iam4kube-"+name, "--output=jsonpath={.items[*].spec.containers[*].image}"))
			return len(list) > 0 && !slices.ContainsFunc(list, func(i string) bool { return i != image })
		})
	}
}
