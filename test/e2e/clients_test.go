//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/test/clients/programs"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// Every client of test/clients/programs, unmodified, gets its own pod's role in a real pod, on
// both paths, and with what the webhook gives it for container credentials. Those that send the
// token do so where nothing else proves who they are.
func TestEveryClientGetsItsPodsRole(t *testing.T) {
	t.Parallel()
	t.Cleanup(func() { wantNoLeaks(t) })
	all := func(programs.Program) bool { return true }
	for _, c := range []struct {
		way         path
		role        string
		runs        func(programs.Program) bool
		annotations []string
	}{
		{nodeWide, "external", all, []string{"iam.amazonaws.com/roleExternalId", "7Qx-external"}},
		{inPod, "role-14", all, nil},
		{inPodToken, "role-18", all, nil},
		{withToken, "role-19", func(p programs.Program) bool { return p.Container.Proves() }, nil},
		// A region is what those there would ask the node's metadata service for.
		{onHost, "role-20", func(p programs.Program) bool { return p.Container.Proves() && !p.Region }, nil},
	} {
		ns := namespace(t, c.way)
		role(t, ns, c.role, c.annotations...)
		create(t, machinePod(t, c.way.of(clientPod(ns, c.role, "wait"))))
		pod := waitPod(t, ns, c.role, running)
		for _, program := range programs.All {
			if !c.runs(program) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", c.way, program.Name), func(t *testing.T) {
				t.Parallel()
				wantOwnKey(t, pod, program)
			})
		}
	}
}

// wantOwnKey runs a program in a pod that waits. Its environment is the one that it needs, and what
// the webhook has added to the pod's.
func wantOwnKey(t *testing.T, pod *corev1.Pod, program programs.Program) {
	t.Helper()
	command := program.Command
	if program.Build != "" {
		built, err := environment.Build(program.Build)
		if err != nil {
			t.Fatal(err)
		}
		command = append([]string{built}, command...)
	}
	args := []string{"--namespace=" + pod.Namespace, "exec", pod.Name, "--container=client", "--", "/usr/bin/env", "--ignore-environment", "--chdir=" + clients(t)}
	s3, s3TLS := fakeS3(t)
	args = append(args, programs.Environ("/tmp", s3, s3TLS)...)
	for _, variable := range pod.Spec.Containers[0].Env {
		if strings.HasPrefix(variable.Name, "AWS_") {
			args = append(args, variable.Name+"="+variable.Value)
		}
	}
	output, err := kubectl(t.Context(), "", append(args, command...)...)
	if err != nil {
		t.Fatal(err)
	}
	found, err := program.Read([]byte(output))
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	if session, want := sessionOf(t, found.AccessKeyId), pod.Namespace+"@"+pod.Spec.ServiceAccountName; session != want {
		t.Errorf("%s has credentials of session %q, want %q", program.CodeBase, session, want)
	}
}

// clients is the folder of the programs on the machine, and in machinePod.
func clients(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../clients")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// machinePod gives a pod the machine's programs: its image has no files of its own.
func machinePod(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	cache, err := controlplane.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	for i, folder := range []string{"/usr", "/etc/alternatives", "/etc/ssl/certs", clients(t), cache} {
		name := fmt.Sprint("machine-", i)
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: folder}},
		})
		container := &pod.Spec.Containers[0]
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: folder, ReadOnly: true})
	}
	return pod
}

// fakeS3 is where the fake S3 answers, without and with TLS.
func fakeS3(t *testing.T) (plain, withTLS string) {
	t.Helper()
	service, err := client.CoreV1().Services(own).Get(t.Context(), "iam4kube-demo-sts", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return service.Spec.ClusterIP + ":8081", service.Spec.ClusterIP + ":8443"
}

// issued is what the fake STS tells of each session that it grants.
var issued = regexp.MustCompile(`session=(\S+) outcome=\S* issued=(\S+)`)

// sessionOf asks the fake STS whose credentials these are.
func sessionOf(t *testing.T, accessKeyID string) string {
	t.Helper()
	granted := grantOf(t, accessKeyID)
	if granted == "" {
		return ""
	}
	return issued.FindStringSubmatch(granted)[1]
}

// grantOf is the line of the fake STS on these credentials, empty if they are not from there.
func grantOf(t *testing.T, accessKeyID string) string {
	t.Helper()
	log, err := kubectl(context.WithoutCancel(t.Context()), "", "--namespace="+own, "logs", "deployment/iam4kube-demo-sts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(log) {
		if line = strings.TrimSpace(line); strings.HasSuffix(line, "issued="+accessKeyID) {
			return line
		}
	}
	return ""
}
