package netns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m, nil) }

// metadataAddress is where the tests' server listens.
const metadataAddress = "169.254.169.254:80"

// serveSource answers each request with the address that it came from.
func serveSource(t *testing.T) {
	t.Helper()
	serveSourceAt(t, metadataAddress)
}

func serveSourceAt(t *testing.T, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = io.WriteString(w, host)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

func get(t *testing.T, client *http.Client) string {
	t.Helper()
	return getFrom(t, client, metadataAddress)
}

func getFrom(t *testing.T, client *http.Client, address string) string {
	t.Helper()
	defer client.CloseIdleConnections()
	client.Timeout = 5 * time.Second
	response, err := client.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestPodsReachTheParentFromTheirAddresses(t *testing.T) {
	AddLocal(t, "169.254.169.254/32")
	serveSource(t)
	for i := range 3 {
		address := fmt.Sprintf("10.244.0.%d", 2+i)
		pod := AddPod(t, address, fmt.Sprintf("fd00::%d", 2+i))
		if seen := get(t, pod.HTTPClient()); seen != address {
			t.Errorf("the server sees %s, want %s", seen, address)
		}
		output, err := pod.Run(t.Context(), "ip", "-brief", "address", "show", "eth0")
		if err != nil || !strings.Contains(string(output), address+"/32") {
			t.Errorf("in the pod: %s, %v, want %s", output, err, address)
		}
	}
}

// A lost packet would be sent again after a second, which is as long as an AWS SDK tries.
func TestFirstPacketOfAPodIsNotLost(t *testing.T) {
	AddLocal(t, "169.254.169.254/32", "fd00:ec2::254/128")
	addresses := []string{metadataAddress, "[fd00:ec2::254]:80"}
	for _, address := range addresses {
		serveSourceAt(t, address)
	}
	for i := range 20 {
		pod := AddPod(t, fmt.Sprintf("10.244.2.%d", 1+i), fmt.Sprintf("fd00::2:%d", 1+i))
		for _, address := range addresses {
			start := time.Now()
			getFrom(t, pod.HTTPClient(), address)
			if took := time.Since(start); took >= time.Second {
				t.Errorf("the first request to %s took %v", address, took)
			}
		}
	}
}

func TestPodsReachEachOther(t *testing.T) {
	one, two := AddPod(t, "10.244.1.1", "fd00::1:1"), AddPod(t, "10.244.1.2", "fd00::1:2")
	for _, address := range []string{"10.244.1.2:80", "[fd00::1:2]:80"} {
		listener, err := two.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		conn, err := one.DialContext(ctx, "tcp", address)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

func TestAddLocalMakesAPrefixUsable(t *testing.T) {
	AddLocal(t, "169.254.169.254/32", "10.1.0.0/16", "fd01::/64")
	serveSource(t)
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 1, 200, 7)}}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	if seen := get(t, client); seen != "10.1.200.7" {
		t.Errorf("the server sees %s, want 10.1.200.7", seen)
	}
	listener, err := net.Listen("tcp", "[fd01::5]:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
}

func TestCheckRefuses(t *testing.T) {
	t.Run("no marker", func(t *testing.T) {
		t.Setenv(marker, "")
		wantRefusal(t, "TestMain does not call")
	})
	t.Run("the namespace it came from", func(t *testing.T) {
		here, err := current()
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv(marker, here)
		wantRefusal(t, "still in")
	})
	t.Run("a foreign interface", func(t *testing.T) {
		if err := ip("link", "add", "eth7", "type", "veth", "peer", "name", "pod-peer"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ip("link", "del", "eth7") })
		wantRefusal(t, "eth7")
	})
	if err := Check(); err != nil {
		t.Errorf("in the namespace of the test: %v", err)
	}
}

func wantRefusal(t *testing.T, because string) {
	t.Helper()
	if err := Check(); err == nil || !strings.Contains(err.Error(), because) {
		t.Errorf("got %v, want a refusal because of %q", err, because)
	}
}

// The test binary's exit status must reach go test.
func TestMainPassesTheExitStatusOn(t *testing.T) {
	const fail = "IAM4KUBE_TEST_FAIL"
	if os.Getenv(fail) != "" {
		t.Fatal("as asked")
	}
	child := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, marker+"=") {
			child.Env = append(child.Env, variable)
		}
	}
	child.Env = append(child.Env, fail+"=1")
	if output, err := child.CombinedOutput(); child.ProcessState.ExitCode() != 1 || !strings.Contains(string(output), "as asked") {
		// A status that gets lost would hide this failure too; a signal does not.
		fmt.Fprintf(os.Stderr, "%s: %v: %s, want exit status 1\n", t.Name(), err, output)
		_ = syscall.Kill(os.Getppid(), syscall.SIGKILL)
	}
}
