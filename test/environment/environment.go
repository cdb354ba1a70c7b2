// Package environment is what a test of the server starts with: a real API server, the
// fake STS, and servers between them, in the test's own process or in one of theirs,
// with the rights of manifests/ and no others.
//
// Pods are objects of the API whose addresses are loopback addresses, so a test sends a
// pod's request by binding the pod's address. Network namespaces (package netns) are made
// by the tests that need them.
package environment

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// Namespace and ServiceAccount are the server's own.
const (
	Namespace      = "iam4kube"
	ServiceAccount = "iam4kube-server"
)

// Account is where NewRole makes roles.
const Account = "123456789012"

// identity is the IAM user that the servers are.
var identity = fakests.Key{
	AccessKeyID:     "AKIA2222222222222222",
	SecretAccessKey: "server-own-secret-never-to-be-seen-000000",
	ARN:             "arn:aws:iam::999988887777:user/iam4kube",
}

// Environment is shared by the tests of a package.
type Environment struct {
	*controlplane.ControlPlane
	STS *fakests.Fake

	sts       *fakests.Server
	issuers   *authority
	logs      Logs
	addresses atomic.Uint32
	roles     atomic.Uint32
}

// Change changes what Start makes.
type Change func(*fakests.Config)

// Start starts everything but servers. The fake STS has the servers' identity and no
// roles; the AWS configuration in this process's environment leads to it.
func Start(ctx context.Context, change ...Change) (*Environment, error) {
	issuers, err := newAuthority()
	if err != nil {
		return nil, err
	}
	cfg := fakests.Config{Issuers: issuers.client()}
	for _, c := range change {
		c(&cfg)
	}
	cp, err := controlplane.Start(ctx, controlplane.Options{})
	if err != nil {
		return nil, err
	}
	e := &Environment{ControlPlane: cp, STS: fakests.New(cfg), issuers: issuers}
	e.STS.AddKey(identity)
	e.sts = e.STS.Start()
	err = errors.Join(
		setenv(append(e.AWSEnviron(), "AWS_EC2_METADATA_DISABLED=true")),
		cp.CreateNamespace(ctx, Namespace),
		cp.ApplyFiles(ctx, checkout.Path("manifests", "base", "server-rbac.yaml")),
	)
	if err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	return e, nil
}

// Main runs the tests of a package in an environment, which start gets before them, and
// returns the exit status. It fails if a secret of the fake STS is in a log.
func Main(m *testing.M, start func(*Environment), change ...Change) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	e, err := Start(ctx, change...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "environment:", err)
		return 1
	}
	start(e)
	status := m.Run()
	if secret := e.Leak(e.logs.String()); secret != "" {
		fmt.Fprintln(os.Stderr, "environment: a log holds a secret:", secret)
		status = 1
	}
	if err := e.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "environment:", err)
		return 1
	}
	return status
}

// Stop ends the API server and the fake STS.
func (e *Environment) Stop() error {
	e.sts.Close()
	return e.ControlPlane.Stop()
}

// AWSEnviron is the environment of a process that uses the fake STS as the server does.
func (e *Environment) AWSEnviron() []string { return e.sts.Environ(identity) }

// Leak returns a part of the text around a secret that the fake STS knows, empty if the
// text holds none.
func (e *Environment) Leak(text string) string {
	if at, length := e.STS.FindSecret(text); length > 0 {
		return text[max(0, at-200):min(len(text), at+length+20)]
	}
	return ""
}

// Address returns a loopback address that no other call gets, for a pod or a node.
func (e *Environment) Address() netip.Addr {
	n := e.addresses.Add(1)
	return netip.AddrFrom4([4]byte{127, 1 + byte(n>>16), byte(n >> 8), byte(n)})
}

// NewRole makes a role at the fake STS, trusting the servers, and returns its ARN.
func (e *Environment) NewRole(change ...func(*fakests.Role)) (arn string) {
	role := fakests.Role{
		ARN:                fmt.Sprintf("arn:aws:iam::%s:role/role-%d", Account, e.roles.Add(1)),
		MaxSessionDuration: 43200,
		Trust:              fakests.Trust{Principals: []string{identity.ARN}},
	}
	for _, c := range change {
		c(&role)
	}
	e.STS.AddRole(role)
	return role.ARN
}

// Config returns flags for a server on free ports of loopback, with the rights of its
// ServiceAccount. Waits are short where a test has to see their end.
func (e *Environment) Config(t testing.TB) server.Config {
	t.Helper()
	cfg, err := e.ServiceAccountConfig(t.Context(), Namespace, ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	return server.Config{
		ListenOn:        "127.0.0.1:0",
		AuxListenOn:     "127.0.0.1:0",
		Kubeconfig:      e.Kubeconfig(t, cfg),
		Namespace:       Namespace,
		STSRateLimit:    1000,
		STSRateBurst:    1000,
		SessionDuration: time.Hour,
		MaxWait:         15 * time.Second,
		ReadyWithin:     10 * time.Minute,
		IMDSv1:          true,
	}
}

func setenv(pairs []string) error {
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
}
