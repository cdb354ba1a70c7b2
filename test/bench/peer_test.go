package bench

import (
	"bufio"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/iam4kube/iam4kube/test/environment"
)

// startBare starts the bare server. It answers everybody with what the first pod gets;
// the answers of the others have the same length.
func startBare(b *testing.B, ours *peer) *peer {
	b.Helper()
	program, err := environment.Build("test/bench/bare")
	if err != nil {
		b.Fatal(err)
	}
	body, containerBody := filepath.Join(b.TempDir(), "body"), filepath.Join(b.TempDir(), "container-body")
	for file, client := range map[string]*pod{body: ours.pods[0], containerBody: ours.containerPods[0]} {
		if err := os.WriteFile(file, client.want, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	command := exec.CommandContext(b.Context(), program, "--body", body, "--container-body", containerBody)
	command.Stderr = os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait() // killed
	})
	address, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		b.Fatal("the bare server has no address: ", err)
	}
	p := &peer{address: strings.TrimSpace(address), pid: command.Process.Pid, other: true}
	same := func(pods []*pod) (copies []*pod) {
		for _, client := range pods {
			copies = append(copies, &pod{from: client.from, request: client.request, want: pods[0].want})
		}
		return copies
	}
	p.pods, p.tokenPods, p.containerPods = same(ours.pods), same(ours.tokenPods), same(ours.containerPods)
	checkSameHead(b, ours, p, func(p *peer) *pod { return p.pods[0] })
	checkSameHead(b, ours, p, func(p *peer) *pod { return p.containerPods[0] })
	return p
}

// startAgainst starts another program of the server, with the same clients as ours. One that does not
// know /v1/credentials yet has no containerPods.
func startAgainst(b *testing.B, program string, ours *peer) *peer {
	b.Helper()
	server, process := env.StartProcessWith(b, func(c *exec.Cmd) { c.Path = program }, serverFlags...)
	server.WaitReady(b)
	p := &peer{address: server.Address, pid: process.Pid, other: true}
	for i, client := range ours.pods {
		path := strings.Fields(string(client.request))[1]
		ask := func(path string, header http.Header) (status int, body []byte) {
			response, text, err := server.Do(b.Context(), server.Client(b, client.from), http.MethodGet, path, header)
			if err != nil {
				b.Fatal(err)
			}
			return response.StatusCode, []byte(text)
		}
		status, body := ask(path, nil)
		if status != http.StatusOK {
			b.Fatalf("%s: %d %s", client.from, status, body)
		}
		p.pods = append(p.pods, &pod{from: client.from, want: body, request: client.request})
		p.tokenPods = append(p.tokenPods, &pod{from: client.from, want: body, request: imdsRequest(path, newToken(b, server, client.from))})
		container := ours.containerPods[i]
		_, token, _ := strings.Cut(string(container.request), "Authorization: ")
		if status, body := ask(containerPath, http.Header{"Authorization": {strings.TrimSpace(token)}}); status == http.StatusOK {
			p.containerPods = append(p.containerPods, &pod{from: client.from, want: body, request: container.request})
		}
	}
	return p
}

// checkSameHead checks that both servers send the same header fields, but for the date.
func checkSameHead(b *testing.B, ours, bare *peer, first func(*peer) *pod) {
	b.Helper()
	head := func(p *peer) []string {
		client := first(p)
		if err := client.dial(b.Context(), p.address); err != nil {
			b.Fatal(err)
		}
		defer client.close()
		if err := client.do(); err != nil {
			b.Fatal(err)
		}
		p.answered++
		lines := slices.DeleteFunc(strings.Split(string(client.head), "\r\n"), func(line string) bool {
			return strings.HasPrefix(line, "Date: ")
		})
		slices.Sort(lines)
		return lines
	}
	if a, b2 := head(ours), head(bare); !slices.Equal(a, b2) {
		b.Fatalf("the servers answer with different headers: %q and %q", a, b2)
	}
}

// newToken returns an IMDSv2 token for the address.
func newToken(b *testing.B, server *environment.Server, from netip.Addr) string {
	b.Helper()
	header := http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"21600"}}
	response, token, err := server.Do(b.Context(), server.Client(b, from), http.MethodPut, "/latest/api/token", header)
	if err != nil {
		b.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		b.Fatalf("token: %s %s", response.Status, token)
	}
	return token
}
