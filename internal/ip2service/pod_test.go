//go:build !podonly

package ip2service

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// answering is a server on loopback in place of the way by one family; nobody listens there
// if pod is empty. It takes the caller for the pod.
func answering(t *testing.T, address, pod string) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(listener.Addr().String())
	if pod == "" {
		_ = listener.Close()
		return at
	}
	s := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Server", "iam4kube")
		w.Header().Set("X-Iam4kube-Source-Ip", address)
		w.Header().Set("X-Iam4kube-Pod", pod)
		w.WriteHeader(http.StatusNoContent)
	})}}
	s.Start()
	t.Cleanup(s.Close)
	return at
}

// What the ways by both families mean together.
func TestWaysOfBothFamilies(t *testing.T) {
	const own, dead, others = "shop/app", "", "other/app"
	const noWay = "the pod starts without a way by one family of addresses, whose requests are rejected"
	for _, tc := range []struct {
		ipv4, ipv6 string
		failure    string
		lines      []string
	}{
		{own, own, "", []string{isReady, isReady}},
		{own, dead, "", []string{isReady, noWay}},
		{dead, own, "", []string{isReady, noWay}},
		{dead, dead, "refused", nil},
		{own, others, `takes this pod's address ::1 for that of pod "other/app"`, []string{isReady}},
		{others, dead, `takes this pod's address 127.0.0.1 for that of pod "other/app"`, nil},
	} {
		t.Run(fmt.Sprintf("%q and %q", tc.ipv4, tc.ipv6), func(t *testing.T) {
			core, logs := observer.New(zap.InfoLevel)
			cfg := Config{
				Mode: ModePod, Pod: own, Wait: time.Second, ProbeTimeout: 300 * time.Millisecond,
				Intercept: []netip.AddrPort{answering(t, "127.0.0.1", tc.ipv4), answering(t, "::1", tc.ipv6)},
				To:        []netip.AddrPort{netip.MustParseAddrPort("10.96.0.7:80"), netip.MustParseAddrPort("[fd00::7]:80")},
				PodIPs:    []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")},
			}
			err := runPod(t.Context(), cfg, &fakeKernel{changed: func() {}}, zap.New(core))
			if (err != nil) != (tc.failure != "") || err != nil && !strings.Contains(err.Error(), tc.failure) {
				t.Errorf("%v, want %q", err, tc.failure)
			}
			var lines []string
			for _, line := range logs.All() {
				lines = append(lines, line.Message)
			}
			if want := append([]string{"the rules are in"}, tc.lines...); fmt.Sprint(lines) != fmt.Sprint(want) {
				t.Errorf("logged %q, want %q", lines, want)
			}
		})
	}
}

const isReady = "the pod's credentials are ready"

// A family that is dead takes seconds of the minute that a server has to come.
func TestDeadFamilyDoesNotTakeTheWholeTime(t *testing.T) {
	cfg := Config{
		Mode: ModePod, Wait: time.Second, ProbeTimeout: time.Hour,
		Intercept: []netip.AddrPort{answering(t, "127.0.0.1", "shop/app"), answering(t, "::1", "")},
		To:        []netip.AddrPort{netip.MustParseAddrPort("10.96.0.7:80"), netip.MustParseAddrPort("[fd00::7]:80")},
		PodIPs:    []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")},
	}
	begin := time.Now()
	if err := runPod(t.Context(), cfg, &fakeKernel{changed: func() {}}, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < otherFamily {
		t.Errorf("given up after %v", took)
	}
}
