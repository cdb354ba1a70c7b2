package observability

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

// TestLargeAnnotationsFillNoMemory: a namespace whose ServiceAccounts have annotations as
// large as the API server admits, with streaming lists and with lists in pages. They would
// end a server with the manifests' limit of 512 Mi; a role of another namespace is served.
func TestLargeAnnotationsFillNoMemory(t *testing.T) {
	const (
		accounts = 400
		bytes    = 250 << 10
		most     = 200 // MiB
	)
	ns := newNamespace(t, "large")
	err := env.CreateServiceAccounts(t.Context(), func(yield func(controlplane.ServiceAccount) bool) {
		for i := range accounts {
			if !yield(controlplane.ServiceAccount{Namespace: ns, Name: fmt.Sprint("a", i), Annotations: map[string]string{
				role.AnnotationARN: strings.Repeat("a", bytes),
			}}) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	other := newWorkload(newNamespace(t, "not-large"), "app", env.NewRole()).create(t)
	for lists, streaming := range map[string]string{"streaming": "true", "in pages": "false"} {
		t.Run(lists, func(t *testing.T) {
			t.Setenv("KUBE_FEATURE_WatchListClient", streaming)
			s, process := env.StartReleased(t, "--drain", "0s")
			s.WaitReady(t)
			if n := s.Metric(t, "iam4kube_service_accounts", "role", "invalid"); n < accounts {
				t.Errorf("%v ServiceAccounts are known as invalid", n)
			}
			other.getCredentials(t, s)
			peak := peakMemory(t, process.Pid)
			t.Logf("at most %d MiB", peak)
			if peak > most {
				t.Errorf("had %d MiB of memory, want at most %d", peak, most)
			}
		})
	}
}

// peakMemory is the most resident memory that the process has had, in MiB: VmHWM of
// proc_pid_status(5).
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kilobytes, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes >> 10
}
