package environment

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/netns"
)

// Server is a running iam4kube server.
type Server struct {
	// Address of the metadata API, Aux of metrics and readiness: IP:PORT.
	Address, Aux string
	Logs         Logs

	env  *Environment
	stop func()
	done chan struct{}
	err  error
}

// startTimeout bounds what no test should ever wait for.
const startTimeout = time.Minute

// Start runs a server in this process. It is stopped with the test, and has to end
// without an error then.
func (e *Environment) Start(t testing.TB, cfg server.Config) *Server {
	t.Helper()
	s := e.newServer()
	log, err := logging.New(&s.Logs, "debug", "json")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() {
		defer close(s.done)
		s.err = server.Run(ctx, cfg, log)
	}()
	s.started(t)
	return s
}

// StartProcess runs a server as its users do: the program, built with the race detector,
// with these flags besides those for its addresses, API server and AWS. The server of
// the returned process is stopped by SIGTERM with the test.
func (e *Environment) StartProcess(t testing.TB, flags ...string) (*Server, *os.Process) {
	t.Helper()
	return e.startProgram(t, Program(t), (*exec.Cmd).Start, flags)
}

// StartProcessWith is StartProcess after a change of the command: its environment, for example.
func (e *Environment) StartProcessWith(t testing.TB, change func(*exec.Cmd), flags ...string) (*Server, *os.Process) {
	t.Helper()
	return e.startProgram(t, Program(t), func(c *exec.Cmd) error { change(c); return c.Start() }, flags)
}

// StartInPod is StartProcess in a pod's network namespace. The API server and the fake STS
// have the addresses there that they have here.
func (e *Environment) StartInPod(t testing.TB, pod *netns.Pod, flags ...string) (*Server, *os.Process) {
	t.Helper()
	for _, url := range []string{e.ControlPlane.Config().Host, e.sts.URL} {
		_, address, _ := strings.Cut(url, "://")
		pod.Forward(t, address)
	}
	return e.startProgram(t, Program(t), pod.Start, flags)
}

// StartReleased is StartProcess with the program as it is released, without the race
// detector, for what is measured.
func (e *Environment) StartReleased(t testing.TB, flags ...string) (*Server, *os.Process) {
	t.Helper()
	path, err := Build("cmd/server")
	if err != nil {
		t.Fatal(err)
	}
	return e.startProgram(t, path, (*exec.Cmd).Start, flags)
}

func (e *Environment) startProgram(t testing.TB, path string, start func(*exec.Cmd) error, flags []string) (*Server, *os.Process) {
	t.Helper()
	cfg := e.Config(t)
	s := e.newServer()
	arguments := append([]string{
		"--listen-on", cfg.ListenOn, "--aux-listen-on", cfg.AuxListenOn, "--kubeconfig", cfg.Kubeconfig, "--log-level", "debug",
	}, flags...)
	command := exec.Command(path, arguments...)
	command.Stderr = &s.Logs
	command.Env = append(Environ(), e.AWSEnviron()...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := start(command); err != nil {
		t.Fatal(err)
	}
	s.stop = func() { _ = command.Process.Signal(syscall.SIGTERM) }
	go func() {
		defer close(s.done)
		s.err = command.Wait()
	}()
	s.started(t)
	return s, command.Process
}

func (e *Environment) newServer() *Server {
	s := &Server{env: e, done: make(chan struct{})}
	s.Logs.also = &e.logs
	return s
}

func (s *Server) started(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	go func() {
		select {
		case <-s.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("the server ended with: %v", err)
		}
	})
	line, err := s.Logs.Wait(ctx, "serving")
	if err != nil {
		t.Fatal(err)
	}
	s.Address, s.Aux = line["address"].(string), line["aux_address"].(string)
}

// Stop ends the server as SIGTERM does, waits for its end and returns its error.
func (s *Server) Stop() error {
	s.stop()
	<-s.done
	return s.err
}

// Wait waits for an end that the test has caused in its own way, and returns its error,
// which does not fail the test then.
func (s *Server) Wait() error {
	<-s.done
	err := s.err
	s.err = nil
	return err
}

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// WaitReady returns when /readyz says so.
func (s *Server) WaitReady(t testing.TB) {
	t.Helper()
	Eventually(t, startTimeout, func() error {
		status, body := s.Readyz(t)
		if status != http.StatusOK {
			return errors.New(body)
		}
		return nil
	})
}

// Readyz asks /readyz once.
func (s *Server) Readyz(t testing.TB) (status int, body string) {
	t.Helper()
	return s.aux(t, "/readyz")
}

// auxClient uses no proxy, as http.DefaultClient would for the address of a pod.
var auxClient = &http.Client{Transport: &http.Transport{}}

func (s *Server) aux(t testing.TB, path string) (status int, body string) {
	t.Helper()
	response, err := auxClient.Get("http://" + s.Aux + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if secret := s.env.Leak(string(content)); secret != "" {
		t.Errorf("%s holds a secret: %s", path, secret)
	}
	return response.StatusCode, string(content)
}

// Metrics returns what /metrics says.
func (s *Server) Metrics(t testing.TB) map[string]*dto.MetricFamily {
	t.Helper()
	response, err := auxClient.Get("http://" + s.Aux + "/metrics")
	for err == nil && response.StatusCode == http.StatusServiceUnavailable { // two others scrape
		_ = response.Body.Close()
		response, err = auxClient.Get("http://" + s.Aux + "/metrics")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// Metric returns the value of one counter or gauge, or the count of one histogram, with
// these labels: name, value, name, value, ... It is 0 if there is none.
func (s *Server) Metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	for _, m := range s.Metrics(t)[name].GetMetric() {
		have := map[string]string{}
		for _, l := range m.GetLabel() {
			have[l.GetName()] = l.GetValue()
		}
		matches := true
		for i := 0; i < len(labels); i += 2 {
			matches = matches && have[labels[i]] == labels[i+1]
		}
		if matches {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return 0
}

// Client returns an HTTP client whose requests come from this address, with a connection
// pool of its own that ends with the test. It follows no redirect and never gives up.
func (s *Server) Client(t testing.TB, from netip.Addr) *http.Client {
	t.Helper()
	transport := &http.Transport{
		DialContext:         (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}).DialContext,
		MaxIdleConnsPerHost: 1000,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Get asks for a path from this address, by IMDSv1, and returns status and body.
func (s *Server) Get(t testing.TB, from netip.Addr, path string) (status int, body string) {
	t.Helper()
	response, body, err := s.Do(t.Context(), s.Client(t, from), http.MethodGet, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

// Do sends one request and reads the answer whole.
func (s *Server) Do(ctx context.Context, client *http.Client, method, path string, header http.Header) (*http.Response, string, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+s.Address+path, http.NoBody)
	if err != nil {
		return nil, "", err
	}
	maps.Copy(request.Header, header)
	response, err := client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

// Eventually calls check until it returns nil, or fails the test with its last error. It
// is for what a test cannot be told of, such as another process's metrics.
func Eventually(t testing.TB, within time.Duration, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", within, err)
		}
	}
}

// Environ is the environment of a program of ours: that of the test, and what keeps the
// race detector from sleeping for a second before the program exits, in case that
// something still runs. Nothing does, the programs have joined it.
func Environ() []string { return append(os.Environ(), "GORACE=atexit_sleep_ms=0") }

// Program builds the server with the race detector, once, and returns its path.
func Program(t testing.TB) string {
	t.Helper()
	path, err := Build("cmd/server", "-race")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Build builds the program whose main package is in this folder of the repository, and
// returns its path, which is in a folder that stays: an unchanged program is not linked
// again. A package whose tests have no network builds before they lose it. The flags are those
// of `make build`, with -race those of the tests, so that go's cache has the packages.
func Build(folder string, flags ...string) (path string, err error) {
	// Once in a process: to find out that nothing has changed, go reads about 700 packages.
	once, _ := builds.LoadOrStore(folder+strings.Join(flags, ""), sync.OnceValues(func() (string, error) { return build(folder, flags) }))
	return once.(func() (string, error))()
}

var builds sync.Map

func build(folder string, flags []string) (path string, err error) {
	emulated := slowdown() > 1
	if emulated {
		flags = slices.DeleteFunc(flags, func(flag string) bool { return flag == "-race" })
	}
	cache, err := controlplane.CacheDir()
	if err != nil {
		return "", err
	}
	// Another checkout's programs are others.
	place := fmt.Sprintf("%x", sha256.Sum256([]byte(checkout.Path())))[:8]
	path = filepath.Join(cache, "programs-"+place+strings.Join(flags, ""), folder)
	if emulated {
		_, err := os.Stat(path)
		return path, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	// Other packages' tests build it too, and nobody may run half of it.
	lock, err := os.Create(path + ".lock")
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }() // gives the lock up
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	command := exec.Command("go", append(append([]string{"build", "-trimpath"}, flags...), "-o", path, ".")...)
	command.Dir = checkout.Path(folder)
	if !slices.Contains(flags, "-race") {
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if output, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w: %s", folder, err, output)
	}
	return path, nil
}
