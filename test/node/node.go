// Package node makes of the test's network namespace a node of a cluster: ip2service runs
// in it, as a process with the rights of manifests/ and no others, against a real API
// server; pods and endpoints are network namespaces below it (package netns), and beyond
// it is nothing but the far side, which counts leaks.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// Namespace is that of the Service, ServiceAccount ip2service's own.
const (
	Namespace      = "iam4kube"
	ServiceAccount = "iam4kube-ip2service"
)

// DataPath is the flag --data-path of those that are started; empty: left out.
var DataPath string

// Through is a command that runs those that are started, setpriv for example; empty: none does.
var Through []string

// Cluster is an API server with what ip2service needs there.
type Cluster struct {
	*controlplane.ControlPlane
	services atomic.Int32
}

// NewCluster prepares an API server.
func NewCluster(ctx context.Context, cp *controlplane.ControlPlane) (*Cluster, error) {
	return &Cluster{ControlPlane: cp}, errors.Join(cp.CreateNamespace(ctx, Namespace),
		cp.ApplyFiles(ctx, checkout.Path("manifests", "base", "ip2service-rbac.yaml")))
}

// Program builds ip2service, with the race detector unless it is for a measurement. A test
// binary that uses it builds it before it loses the network.
func Program(race bool) (path string, err error) {
	if race {
		return environment.Build("cmd/ip2service", "-race")
	}
	return environment.Build("cmd/ip2service")
}

// InitProgram builds what is put into pods, as make build does.
func InitProgram() (path string, err error) {
	return environment.Build("cmd/ip2service", "-ldflags=-s -w", "-tags=podonly")
}

// Service is a name that EndpointSlices belong to.
type Service struct {
	Name    string
	cluster *Cluster
}

// NewService returns one without endpoints.
func (c *Cluster) NewService() *Service {
	return &Service{Name: fmt.Sprint("service-", c.services.Add(1)), cluster: c}
}

// State is that of an endpoint in a slice; nil conditions are left out.
type State struct {
	Address                     string
	Ready, Serving, Terminating *bool
}

// Ready is an endpoint that gets new connections.
func Ready(address string) State { return State{Address: address, Ready: new(true)} }

// Draining is a server that was told to stop.
func Draining(address string) State {
	return State{Address: address, Ready: new(false), Serving: new(false), Terminating: new(true)}
}

// Set makes these the endpoints of the Service in the slice of this name, all of one
// family; without endpoints the slice stays and is empty.
func (s *Service) Set(t testing.TB, slice string, states ...State) {
	t.Helper()
	s.SetPort(t, slice, "http", Port, states...)
}

// SetPort is Set with another port than Port by the name of http.
func (s *Service) SetPort(t testing.TB, slice, portName string, port int32, states ...State) {
	t.Helper()
	object := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: s.Name + "-" + slice, Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{},
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: new(corev1.ProtocolTCP)}},
	}
	for _, e := range states {
		if netip.MustParseAddr(e.Address).Is6() {
			object.AddressType = discoveryv1.AddressTypeIPv6
		}
		object.Endpoints = append(object.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{e.Address},
			Conditions: discoveryv1.EndpointConditions{Ready: e.Ready, Serving: e.Serving, Terminating: e.Terminating},
		})
	}
	api := s.cluster.Client.DiscoveryV1().EndpointSlices(Namespace)
	_, err := api.Update(t.Context(), object, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = api.Create(t.Context(), object, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Delete deletes a slice.
func (s *Service) Delete(t testing.TB, slice string) {
	t.Helper()
	err := s.cluster.Client.DiscoveryV1().EndpointSlices(Namespace).Delete(t.Context(), s.Name+"-"+slice, metav1.DeleteOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// IP2Service is a running ip2service --mode node.
type IP2Service struct {
	Logs environment.Logs
	// Aux is the address of metrics and readiness: IP:PORT.
	Aux     string
	Process *os.Process
	done    chan struct{}
	err     error
}

// Start starts ip2service for the Service, with these flags besides, until the test ends,
// and returns when it answers on its aux port. The rules are removed then, unless the
// test has ended the program itself.
func (s *Service) Start(t testing.TB, flags ...string) *IP2Service {
	t.Helper()
	return StartProgram(t, append(s.Flags(t), flags...)...)
}

// StartReleased is Start with the program as it is released, without the race detector,
// for what is measured.
func (s *Service) StartReleased(t testing.TB) *IP2Service {
	t.Helper()
	return start(t, false, s.Flags(t))
}

// Flags lead ip2service to the Service, on the way to the API server that each of through
// changes.
func (s *Service) Flags(t testing.TB, through ...func(*rest.Config) *rest.Config) []string {
	t.Helper()
	config, err := s.cluster.ServiceAccountConfig(t.Context(), Namespace, ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range through {
		config = change(config)
	}
	return []string{"--kubeconfig", s.cluster.Kubeconfig(t, config), "--service-namespace", Namespace, "--service-name", s.Name}
}

// StartProgram starts ip2service on free ports with these flags.
func StartProgram(t testing.TB, flags ...string) *IP2Service {
	t.Helper()
	return start(t, true, flags)
}

func start(t testing.TB, race bool, flags []string) *IP2Service {
	t.Helper()
	i := launch(t, race, flags)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("ip2service: %s", i.Logs.String())
		}
		if err := i.Stop(); err != nil {
			t.Errorf("ip2service ended with: %v", err)
		}
		Cleanup(t)
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		select {
		case <-i.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	line, err := i.Logs.Wait(ctx, "watching")
	if err != nil {
		t.Fatal(err)
	}
	i.Aux = line["aux_address"].(string)
	return i
}

// Launch is StartProgram without waiting for anything, for a test that kills the program.
// Its rules stay.
func Launch(t testing.TB, flags ...string) *IP2Service {
	t.Helper()
	i := launch(t, true, flags)
	t.Cleanup(i.Kill)
	return i
}

func launch(t testing.TB, race bool, flags []string) *IP2Service {
	t.Helper()
	path, err := Program(race)
	if err != nil {
		t.Fatal(err)
	}
	if DataPath != "" {
		flags = append([]string{"--data-path", DataPath}, flags...)
	}
	i := &IP2Service{done: make(chan struct{})}
	whole := slices.Concat(Through, []string{path, "--aux-listen-on", "127.0.0.1:0", "--log-level", "debug"}, flags)
	command := exec.Command(whole[0], whole[1:]...)
	command.Stderr = &i.Logs
	command.Env = environment.Environ()
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	i.Process = command.Process
	go func() {
		defer close(i.done)
		i.err = command.Wait()
	}()
	return i
}

// Cleanup runs ip2service --cleanup.
func Cleanup(t testing.TB) {
	t.Helper()
	path, err := Program(true)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(path, "--cleanup")
	command.Env = environment.Environ()
	if output, err := command.CombinedOutput(); err != nil {
		t.Errorf("ip2service --cleanup: %v: %s", err, output)
	}
}

// Wait waits for an end that the test has caused in its own way.
func (i *IP2Service) Wait() { <-i.done }

// Stop ends the program as the kubelet does, and returns its error.
func (i *IP2Service) Stop() error {
	_ = i.Process.Signal(syscall.SIGTERM)
	<-i.done
	return i.err
}

// Kill ends it with SIGKILL.
func (i *IP2Service) Kill() {
	_ = i.Process.Kill()
	<-i.done
	i.err = nil
}

// Get asks the aux port.
func (i *IP2Service) Get(t testing.TB, path string) (status int, body string) {
	t.Helper()
	response, err := http.Get("http://" + i.Aux + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

// WaitReady returns when /readyz says so.
func (i *IP2Service) WaitReady(t testing.TB) {
	t.Helper()
	environment.Eventually(t, time.Minute, func() error {
		if status, body := i.Get(t, "/readyz"); status != http.StatusOK {
			return errors.New(body)
		}
		return nil
	})
}

// WaitMetric returns when a line of /metrics, such as `iam4kube_endpoints{state="ready"}`,
// has this value.
func (i *IP2Service) WaitMetric(t testing.TB, series, value string) {
	t.Helper()
	environment.Eventually(t, 10*time.Second, func() error {
		if have := i.metric(t, series); have != value {
			return fmt.Errorf("%s is %q, want %s", series, have, value)
		}
		return nil
	})
}

// Metric is the value of a counter or gauge that is a whole number, by the line as of
// WaitMetric.
func (i *IP2Service) Metric(t testing.TB, series string) int {
	t.Helper()
	value, err := strconv.Atoi(i.metric(t, series))
	if err != nil {
		t.Fatalf("%s: %v", series, err)
	}
	return value
}

func (i *IP2Service) metric(t testing.TB, series string) (value string) {
	t.Helper()
	_, body := i.Get(t, "/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// NFT runs nft in the namespace of the node and returns what it printed.
func NFT(t testing.TB, arguments ...string) string {
	t.Helper()
	output, err := exec.Command("nft", arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v: %s", arguments, err, output)
	}
	return string(output)
}
