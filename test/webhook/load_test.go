package webhook

import (
	"crypto/tls"
	"fmt"
	"math"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// rate is what section 8 of the contract measures at.
const rate = 200

// createAtRate tries to create so many pods, as dry runs, at the rate, and returns how long
// it took. A busy machine makes it slower, not wrong: where the API server is not given a
// processor for the three seconds that a handshake may take, it finds its new connection closed
// (EPIPE before the request), says so to who creates the pod, and that one tries again.
func createAtRate(t testing.TB, namespace string, count int) time.Duration {
	t.Helper()
	start := time.Now()
	var closed atomic.Int64
	ticker := time.NewTicker(time.Second / rate)
	defer ticker.Stop()
	queue := make(chan int)
	var workers sync.WaitGroup
	for range 32 {
		workers.Go(func() {
			for i := range queue {
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("app-%d", i)}, Spec: plainSpec()}
				create := func() (*corev1.Pod, error) {
					return cp.Client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				}
				created, err := create()
				if err != nil && strings.Contains(err.Error(), syscall.EPIPE.Error()) {
					closed.Add(1)
					created, err = create()
				}
				if err != nil {
					t.Errorf("pod %d: %v", i, err)
				} else if len(created.Spec.InitContainers) != 1 {
					t.Errorf("pod %d is not injected", i)
				}
			}
		})
	}
	for i := range count {
		<-ticker.C
		queue <- i
	}
	close(queue)
	workers.Wait()
	if n := closed.Load(); n > int64(count/500) {
		t.Errorf("%d connections were closed in their handshakes", n)
	}
	return time.Since(start)
}

// TestCertificateRotation: the certificate is renewed four times a second under load, and
// every second its CA too, as cert-manager does it with the manifests: the same key in a
// new certificate, which is added to the caBundle. A changed caBundle makes the API server
// open new connections, so that it sees the new certificates.
func TestCertificateRotation(t *testing.T) {
	h := startProgram(t, []string{"-race"})
	h.waitReady(t)
	install(t, h)
	namespace := newNamespace(t, inject.Enabled, nil)
	served := map[string]bool{}
	var wanted atomic.Value
	stop, rotating := make(chan struct{}), sync.WaitGroup{}
	rotating.Go(func() {
		ticker := time.NewTicker(250 * time.Millisecond)
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-ticker.C:
			}
			if i%4 == 3 {
				h.ca.renew(t)
				addToBundle(t, h.ca.pem)
			}
			wanted.Store(h.ca.issue(t, h.certDir, time.Hour))
			served[h.serial(t)] = true
		}
	})
	took := createAtRate(t, namespace, 3*rate)
	close(stop)
	rotating.Wait()
	eventually(t, func() error {
		if have := h.serial(t); have != wanted.Load() {
			return fmt.Errorf("certificate %s is served, not %v", have, wanted.Load())
		}
		return nil
	})
	t.Logf("%d pods in %v, %d certificates seen", 3*rate, took, len(served))
	if len(served) < 3 { // of three seconds; the files are read once a second
		t.Errorf("%d certificates were served: the rotation was no test", len(served))
	}
}

// serial is that of the certificate which new connections get.
func (h *hook) serial(t testing.TB) string {
	t.Helper()
	u, err := url.Parse(h.url)
	if err != nil {
		t.Error(err)
		return ""
	}
	// What the API server verifies is not verified twice.
	c, err := tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Error(err)
		return ""
	}
	defer func() { _ = c.Close() }()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

func addToBundle(t testing.TB, pem []byte) {
	t.Helper()
	client := cp.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	c, err := client.Get(background, "iam4kube-webhook", metav1.GetOptions{})
	if err == nil {
		c.Webhooks[0].ClientConfig.CABundle = append(c.Webhooks[0].ClientConfig.CABundle, pem...)
		_, err = client.Update(background, c, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Error(err)
	}
}

// BenchmarkInjection prints the webhook's own time, from a review's header to its answer, at
// 200 pods a second. Each pod is two reviews: the API server asks again after its own
// admission has added to what was injected.
func BenchmarkInjection(b *testing.B) {
	h := startProgram(b, nil)
	h.waitReady(b)
	install(b, h)
	namespace := newNamespace(b, inject.Enabled, nil)
	for b.Loop() {
		spent, reviews := h.cpu(b), h.sum(b, "iam4kube_admissions_total")
		took := createAtRate(b, namespace, 20*rate)
		b.ReportMetric(1e6*(h.cpu(b)-spent)/(h.sum(b, "iam4kube_admissions_total")-reviews), "cpu-µs/review")
		b.ReportMetric(20*rate/took.Seconds(), "pods/s")
		b.ReportMetric(1000*h.quantile(b, 0.5), "p50-ms")
		b.ReportMetric(1000*h.quantile(b, 0.99), "p99-ms")
		b.ReportMetric(0, "ns/op")
	}
}

// cpu is the processor time that the webhook has used, in seconds.
func (h *hook) cpu(t testing.TB) float64 {
	t.Helper()
	return h.sum(t, "process_cpu_seconds_total")
}

// quantile is the upper bound of the histogram's bucket.
func (h *hook) quantile(t testing.TB, q float64) float64 {
	t.Helper()
	histogram := h.metrics(t)["iam4kube_admission_duration_seconds"].GetMetric()[0].GetHistogram()
	for _, bucket := range histogram.GetBucket() {
		if float64(bucket.GetCumulativeCount()) >= q*float64(histogram.GetSampleCount()) {
			return bucket.GetUpperBound()
		}
	}
	return math.Inf(1)
}
