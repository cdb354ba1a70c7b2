package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	streamhttp "k8s.io/streaming/pkg/httpstream"
)

// forwardTimeout bounds what one pod takes: a pod that hangs is told of, not waited for.
const forwardTimeout = 8 * time.Second

// bodyBytes is more than a dump of 5,000 roles, or of 50,000 pods.
const bodyBytes = 64 << 20

// Forward leads ports of a pod to ports of this machine's loopback, until it is closed.
type Forward struct {
	client *http.Client
	local  map[uint16]uint16
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// Forward opens a port-forward, as `kubectl port-forward` does. A pod that the user may not
// forward to is Hidden.
func (c *Cluster) Forward(ctx context.Context, pod *corev1.Pod, ports ...uint16) (*Forward, error) {
	dialer, err := c.dialer(pod)
	if err != nil {
		return nil, err
	}
	pairs := make([]string, len(ports))
	for i, port := range ports {
		pairs[i] = fmt.Sprintf("0:%d", port)
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	ready := make(chan struct{})
	forwarder, err := portforward.NewOnAddressesForStreamingWithContext(ctx, dialer, []string{"127.0.0.1"}, pairs, ready, io.Discard, io.Discard)
	if err != nil {
		cancel()
		return nil, err
	}
	f := &Forward{cancel: cancel, local: map[uint16]uint16{}, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	failed := make(chan error, 1)
	f.ended.Go(func() { failed <- forwarder.ForwardPorts() })
	select {
	case <-ready:
	case err := <-failed:
		f.Close()
		return nil, forwardError(err)
	case <-ctx.Done():
		// Not joined: a dial that does not answer ends by itself.
		cancel()
		return nil, fmt.Errorf("no port-forward within %v", forwardTimeout)
	}
	pairsNow, err := forwarder.GetPorts()
	if err != nil {
		f.Close()
		return nil, err
	}
	for _, pair := range pairsNow {
		f.local[pair.Remote] = pair.Local
	}
	return f, nil
}

// dialer speaks WebSocket, and SPDY with API servers and proxies that do not know it.
func (c *Cluster) dialer(pod *corev1.Pod) (streamhttp.Dialer, error) {
	url := c.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, c.config)
	if err != nil {
		return nil, err
	}
	return portforward.NewFallbackDialerForStreaming(tunnel, old, func(err error) bool {
		return streamhttp.IsUpgradeFailure(err) || streamhttp.IsHTTPSProxyError(err)
	}), nil
}

// forwardError tells a refusal apart, of which client-go has only the text.
func forwardError(err error) error {
	if err == nil {
		return errors.New("the port-forward ended")
	}
	if text := err.Error(); strings.Contains(text, "orbidden") || strings.Contains(text, "403") {
		return &HiddenError{Why: "no right to forward ports of pods (create pods/portforward)"}
	}
	return err
}

// Port is the address on this machine of one of the pod's ports.
func (f *Forward) Port(port uint16) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(f.local[port])))
}

// Get asks the pod's port for a path by HTTP.
func (f *Forward) Get(ctx context.Context, port uint16, path string) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.Port(port)+path, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	response, err := f.client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err = io.ReadAll(io.LimitReader(response.Body, bodyBytes))
	return response.StatusCode, body, err
}

// Close ends the forward and waits for that.
func (f *Forward) Close() {
	f.cancel()
	f.ended.Wait()
}
