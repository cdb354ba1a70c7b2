package inpod

import (
	"net"
	"testing"

	"github.com/iam4kube/iam4kube/test/netns"
)

// resolve answers by UDP and TCP at the metadata service's addresses, as a cloud's resolver
// does, and at a port beside it.
func resolve(t *testing.T, far *netns.FarSide) {
	t.Helper()
	for _, address := range []string{metadataIPv4, metadataIPv6} {
		for _, port := range []string{"53", "54"} {
			at := net.JoinHostPort(address, port)
			listener, err := far.Listen("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { listener.Close() })
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Write([]byte("resolved"))
					conn.Close()
				}
			}()
			var packets net.PacketConn
			if err := far.Do(func() (err error) {
				packets, err = net.ListenPacket("udp", at)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { packets.Close() })
			go func() {
				buffer := make([]byte, 512)
				for {
					_, from, err := packets.ReadFrom(buffer)
					if err != nil {
						return
					}
					_, _ = packets.WriteTo([]byte("resolved"), from)
				}
			}()
		}
	}
}

// With --allow-dns a pod gets to the resolver at the metadata service's address, and to
// nothing else there.
func TestDNSPassesWhereItMay(t *testing.T) {
	far := netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	resolve(t, far)
	pod := netns.AddPod(t, podIPv4, podIPv6)
	start(t, pod, "--to", serviceIPv4, "--to", serviceIPv6, "--allow-dns").exits(t, 0, isReady)
	for _, address := range []string{metadataIPv4, metadataIPv6} {
		for _, network := range []string{"udp", "tcp"} {
			conn, err := pod.DialContext(t.Context(), network, net.JoinHostPort(address, "53"))
			if err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 512)
			n := 0
			if _, err = conn.Write([]byte("?")); err == nil {
				n, err = conn.Read(answer)
			}
			if string(answer[:n]) != "resolved" {
				t.Errorf("%s to %s: %q, %v", network, address, answer[:n], err)
			}
			conn.Close()
		}
	}
	if far.TakeLeaks(t) == 0 {
		t.Error("nothing got there")
	}
	for _, address := range []string{metadataIPv4, metadataIPv6} {
		rejected(t, pod, "udp", net.JoinHostPort(address, "54"))
		rejected(t, pod, "tcp", net.JoinHostPort(address, "54"))
		rejected(t, pod, "udp", net.JoinHostPort(address, "80"))
	}
	reaches(t, pod, metadataIPv4, "server", podIPv4)
	reaches(t, pod, metadataIPv6, "server", podIPv6)
}
