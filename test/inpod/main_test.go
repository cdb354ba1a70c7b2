// Package inpod tests ip2service --mode pod as a pod's init container runs it: the
// program in the pod's network namespace, while the nftables of the node do what
// kube-proxy does for the Service, and its verdicts on all that can be wrong there. The
// server is a double, so that it can also answer wrongly.
package inpod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

func TestMain(m *testing.M) {
	if netns.Check() != nil { // still where modules can be fetched
		_, err := node.Program(true)
		_, released := node.InitProgram()
		if err := errors.Join(err, released); err != nil {
			fmt.Fprintln(os.Stderr, "inpod:", err)
			os.Exit(1)
		}
	}
	netns.Main(m, nil)
}

// failed is the exit status of mode pod that users may have in a Job's podFailurePolicy.
const failed = 113

const (
	metadataIPv4 = "169.254.169.254"
	metadataIPv6 = "fd00:ec2::254"
	podIPv4      = "10.244.0.2"
	podIPv6      = "fd00:10:244::2"
	serverIPv4   = "10.244.1.2"
	serverIPv6   = "fd00:10:244:1::2"
	serviceIPv4  = "10.96.0.7:80"
	serviceIPv6  = "[fd00:10:96::7]:80"
)

// services are the rules of the node for the Service, as kube-proxy makes them.
const services = `
table ip services {
	chain prerouting {
		type nat hook prerouting priority -100
		ip daddr 10.96.0.7 tcp dport 80 dnat to 10.244.1.2:8080
	}
}
table ip6 services {
	chain prerouting {
		type nat hook prerouting priority -100
		ip6 daddr fd00:10:96::7 tcp dport 80 dnat to [fd00:10:244:1::2]:8080
	}
}
`

// nodeRules replaces the node's rules by these, until the test ends.
func nodeRules(t *testing.T, script string) {
	t.Helper()
	nft(t, nil, "flush ruleset\n"+script)
	t.Cleanup(func() { nft(t, nil, "flush ruleset\n") })
}

// nft reads the script in a pod, or in the node if it is nil.
func nft(t *testing.T, pod *netns.Pod, script string) {
	t.Helper()
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(script)
	var output []byte
	do := func() (err error) {
		output, err = command.CombinedOutput()
		return err
	}
	err := netns.Check()
	if err == nil && pod != nil {
		err = pod.Do(do)
	} else if err == nil {
		err = do()
	}
	if err != nil {
		t.Fatalf("nft: %v: %s\n%s", err, output, script)
	}
}

// inPod runs a command of the pod's and returns what it printed.
func inPod(t *testing.T, pod *netns.Pod, name string, arguments ...string) string {
	t.Helper()
	output, err := pod.Run(t.Context(), name, arguments...)
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, arguments, err, output)
	}
	return string(output)
}

// serve makes the pod of a server, until the test ends. It answers ready to the init
// container, and all other requests as a node.Endpoint by the name of server does.
func serve(t *testing.T, ready http.HandlerFunc) *netns.Pod {
	t.Helper()
	pod := netns.AddPod(t, serverIPv4, serverIPv6)
	listen(t, pod, ready)
	return pod
}

func listen(t *testing.T, pod *netns.Pod, ready http.HandlerFunc) {
	t.Helper()
	listener, err := pod.Listen("tcp", "[::]:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/iam4kube/ready" {
			ready(w, r)
			return
		}
		fmt.Fprintf(w, "server %s", source(r))
	})}
	go func() { _ = server.Serve(listener) }() // until Close
	t.Cleanup(func() { server.Close() })
}

// source is the address that a request comes from.
func source(r *http.Request) string {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		panic(err)
	}
	return from.Addr().Unmap().String()
}

// answer is one of the real server's: see endpointReady in internal/server/metadata.
func answer(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "iam4kube")
		w.Header().Set("X-Iam4kube-Source-Ip", source(r))
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

var ready = answer(http.StatusNoContent, "")

// initContainer is one run of the program.
type initContainer struct {
	*exec.Cmd
	logs environment.Logs
}

// start starts the program in the pod, with these flags besides the mode.
func start(t *testing.T, pod *netns.Pod, flags ...string) *initContainer {
	t.Helper()
	path, err := node.Program(true)
	if err != nil {
		t.Fatal(err)
	}
	return startCommand(t, pod, append([]string{path}, mode(flags...)...)...)
}

func mode(flags ...string) []string { return append([]string{"--mode", "pod"}, flags...) }

func startCommand(t *testing.T, pod *netns.Pod, words ...string) *initContainer {
	t.Helper()
	// Nothing here takes as long; then it is killed and its code is -1.
	ctx, cancel := context.WithTimeout(t.Context(), environment.AtMost(time.Minute))
	t.Cleanup(cancel)
	c := &initContainer{Cmd: exec.CommandContext(ctx, words[0], words[1:]...)}
	c.start(t, pod)
	return c
}

func (c *initContainer) start(t *testing.T, pod *netns.Pod) {
	t.Helper()
	c.Stdout, c.Stderr = &c.logs, &c.logs
	if c.Env == nil {
		// Else the race detector sleeps for a second before each exit.
		c.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	}
	if err := pod.Start(c.Cmd); err != nil {
		t.Fatal(err)
	}
}

// exits waits for the end and checks the exit code, and that the output has these parts.
func (c *initContainer) exits(t *testing.T, code int, parts ...string) {
	t.Helper()
	if err := c.Wait(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
	}
	output := c.logs.String()
	if got := c.ProcessState.ExitCode(); got != code {
		t.Errorf("exit %d, want %d: %s", got, code, output)
	}
	for _, part := range parts {
		if !strings.Contains(output, part) {
			t.Errorf("the output does not say %q: %s", part, output)
		}
	}
	if lines := strings.Split(strings.TrimSpace(output), "\n"); code == failed && !strings.HasPrefix(lines[len(lines)-1], "ip2service: ") {
		t.Errorf("the last line is not the reason: %s", output)
	}
}

// reaches checks that the pod's request to an address gets to this server, and comes from
// this address there.
func reaches(t *testing.T, pod *netns.Pod, address, server, from string) {
	t.Helper()
	got, err := node.Ask(t, pod, address)
	if want := (node.Answer{Name: server, Source: from}); err != nil || got != want {
		t.Errorf("%s: got %+v, %v, want %+v", address, got, err, want)
	}
}

// rejected checks that the pod's packet to an address gets an error back, and at once.
func rejected(t *testing.T, pod *netns.Pod, network, address string) {
	t.Helper()
	atOnce := environment.AtMost(5 * time.Second) // if nobody answered, TCP would go on for minutes
	ctx, cancel := context.WithTimeout(t.Context(), atOnce)
	defer cancel()
	conn, err := pod.DialContext(ctx, network, address)
	if err == nil {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(atOnce))
		if _, err = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
	}
	var timeout net.Error
	if err == nil || ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("%s %s: %v, want an error at once", network, address, err)
	}
}
