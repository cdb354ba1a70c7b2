package benchrouting

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/test/netns"
)

// BenchmarkRefusals measures how soon a pod is refused while there is no endpoint.
func BenchmarkRefusals(b *testing.B) {
	inNamespace(b)
	netns.NewFarSide(b)
	p := newPods(b)
	var compared []way // with the first
	for _, w := range ways {
		if slices.Contains([]string{"iam4kube", "iam4kube, eBPF", "iam4kube, eBPF and rules"}, w.name) {
			compared = append(compared, w)
		}
	}
	refused := make([][]time.Duration, len(compared))
	for range rounds {
		for i, w := range compared {
			refused[i] = append(refused[i], p.refusals(b, w)...)
		}
	}
	base := percentile(refused[0], 50)
	for i, w := range compared {
		p50 := percentile(refused[i], 50)
		fmt.Printf("  refused, %-24s  p50 %.1f µs  ratio %.2f  p99 %.0f µs  %s\n", w.name, p50, p50/base, percentile(refused[i], 99), contract(p50/base, w.most.refuse))
	}
}

func (p *pods) refusals(b *testing.B, w way) (took []time.Duration) {
	b.Helper()
	to := &unix.SockaddrInet4{Addr: intercepted.Addr().As4(), Port: int(intercepted.Port())}
	err := w.set(nil)
	if err == nil {
		err = p.inClient(func() error {
			for until := time.Now().Add(saturation / 2); time.Now().Before(until); {
				socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				start := time.Now()
				err = unix.Connect(socket, to)
				took = append(took, time.Since(start))
				_ = unix.Close(socket)
				if !errors.Is(err, unix.ECONNREFUSED) {
					return fmt.Errorf("not refused: %w", err)
				}
			}
			return nil
		})
	}
	if err = errors.Join(err, w.remove()); err != nil {
		b.Fatalf("%s: %v", w.name, err)
	}
	return took
}
