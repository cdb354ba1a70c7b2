package ebpf

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/node"
)

// startWith starts ip2service as root with these capabilities and no others.
func startWith(t *testing.T, capabilities, dataPath string) *node.IP2Service {
	t.Helper()
	node.Through = []string{"setpriv", "--bounding-set", "-all" + capabilities, "--inh-caps", "-all", "--no-new-privs"}
	defer func() { node.Through = nil }()
	return node.StartProgram(t, append(flags(t), "--data-path", dataPath)...)
}

func wantPrograms(t *testing.T, i *node.IP2Service, some bool) {
	t.Helper()
	attached, effective := i.Metric(t, `iam4kube_bpf_programs{state="attached"}`), i.Metric(t, `iam4kube_bpf_programs{state="effective"}`)
	if attached != effective || (attached >= 6) != some || !some && attached > 0 {
		t.Errorf("%d programs are attached and %d effective, want some: %v", attached, effective, some)
	}
}

// What the component ebpf gives is enough, and SYS_ADMIN is not among it.
func TestBPFAndNetAdminAreEnough(t *testing.T) {
	newRig(t)
	for _, dataPath := range []string{"ebpf", "auto"} {
		i := startWith(t, ",+net_admin,+bpf", dataPath)
		wantPrograms(t, i, true)
		if err := i.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// Without them there are the rules. Who asked for programs is told what is missing, and who
// left it open goes on.
func TestWithoutBPF(t *testing.T) {
	r := newRig(t)
	refused := func() {
		t.Helper()
		err := r.pod.Do(func() error { return connectTo(metadata[0], nil) })
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Error(err)
		}
	}
	const missing = "the capabilities BPF and NET_ADMIN are needed"
	i := startWith(t, ",+net_admin", "ebpf")
	environment.Eventually(t, 10*time.Second, func() error {
		if status, body := i.Get(t, "/readyz"); status == http.StatusOK || !strings.Contains(body, missing) {
			return errors.New(body)
		}
		return nil
	})
	refused()
	wantPrograms(t, i, false)
	if err := i.Stop(); err != nil {
		t.Error(err)
	}
	i = startWith(t, ",+net_admin", "auto")
	line, err := i.Logs.Wait(t.Context(), "nftables rules alone lead what pods send, as eBPF programs cannot be had here")
	if err != nil || line["level"] != "warn" || !strings.Contains(line["error"].(string), missing) {
		t.Errorf("%v, %v", line, err)
	}
	refused()
	wantPrograms(t, i, false)
	if _, body := i.Get(t, "/readyz"); strings.Contains(body, missing) {
		t.Error(body)
	}
}
