//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/test/clients/programs"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// Every client of test/clients/programs, unmodified, gets its own pod's role in a real pod, on
// both paths.
func TestEveryClientGetsItsPodsRole(t *testing.T) {
	t.Parallel()
	t.Cleanup(func() { wantNoLeaks(t) })
	s3, s3TLS := fakeS3(t)
	for way, name := range map[path]string{nodeWide: "role-13", inPod: "role-14"} {
		ns := namespace(t, way)
		role(t, ns, name)
		create(t, machinePod(t, clientPod(ns, name, "wait")))
		waitPod(t, ns, name, running)
		for _, program := range programs.All {
			t.Run(fmt.Sprintf("%s/%s", way, program.Name), func(t *testing.T) {
				t.Parallel()
				command := program.Command
				if program.Build != "" {
					built, err := environment.Build(program.Build)
					if err != nil {
						t.Fatal(err)
					}
					command = append([]string{built}, command...)
				}
				args := []string{"--namespace=" + ns, "exec", name, "--container=client", "--", "/usr/bin/env", "--ignore-environment", "--chdir=" + clients(t)}
				args = append(args, programs.Environ("/tmp", s3, s3TLS)...)
				output, err := kubectl(t.Context(), "", append(args, command...)...)
				if err != nil {
					t.Fatal(err)
				}
				found, err := program.Read([]byte(output))
				if err != nil {
					t.Fatalf("%v: %s", err, output)
				}
				if session, want := sessionOf(t, found.AccessKeyId), ns+"@"+name; session != want {
					t.Errorf("%s has credentials of session %q, want %q", program.CodeBase, session, want)
				}
			})
		}
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
	log, err := kubectl(context.WithoutCancel(t.Context()), "", "--namespace="+own, "logs", "deployment/iam4kube-demo-sts")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(log, "\n")
	i := slices.IndexFunc(lines, func(line string) bool { return strings.HasSuffix(line, "issued="+accessKeyID) })
	if i < 0 {
		return ""
	}
	return issued.FindStringSubmatch(lines[i])[1]
}
