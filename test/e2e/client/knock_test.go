package main

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/netns"
)

func TestMain(m *testing.M) { netns.Main(m, nil) }

// An ICMP error from the address, about another packet, is no answer to a ping.
func TestPingIsAnsweredByAnEchoReplyAlone(t *testing.T) {
	const address = "169.254.170.2"
	netns.AddLocal(t, address+"/32")
	closed, err := net.Dial("udp", address+":9")
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		ticker := time.NewTicker(patience / 100)
		defer ticker.Stop()
		for {
			_, _ = closed.Write([]byte("?")) // brings "port unreachable"
			select {
			case <-ticker.C:
			case <-done:
				return
			}
		}
	}()
	for _, c := range []struct{ ignoreEcho, want string }{{"1", "silent"}, {"0", icmp + " " + address + " open"}} {
		if err := os.WriteFile("/proc/sys/net/ipv4/icmp_echo_ignore_all", []byte(c.ignoreEcho), 0); err != nil {
			t.Fatal(err)
		}
		k := &knocks{report: Knocks{Others: map[string]int{}}}
		if k.other(icmp, address); k.report.Others[c.want] != 1 {
			t.Errorf("icmp_echo_ignore_all=%s: %v, want %s", c.ignoreEcho, k.report.Others, c.want)
		}
	}
}
