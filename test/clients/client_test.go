package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/clients/programs"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
	"github.com/iam4kube/iam4kube/test/netns"
)

// The fake S3, which some clients need to tell whose credentials they have.
const (
	s3Prefix  = "10.96.0.80/32"
	s3Address = "10.96.0.80:9000"
	s3TLS     = "10.96.0.80:9443"
)

// client is a real AWS client.
type client struct{ programs.Program }

// found is what a client finds without configuration, as it prints it.
type found = programs.Found

var clientGoV2 = client{programs.Named("aws-sdk-go-v2")}

var (
	allClients = clientsOf(programs.All)
	// sdkClients are those that further tests run.
	sdkClients = clientsOf(programs.SDKs)
)

func clientsOf(list []programs.Program) []client {
	clients := make([]client, len(list))
	for i, p := range list {
		clients[i] = client{p}
	}
	return clients
}

func (c client) command() ([]string, error) {
	if c.Build == "" {
		return c.Command, nil
	}
	program, err := environment.Build(c.Build)
	return append([]string{program}, c.Command...), err
}

// run runs the client in the pod, which has to find something.
func (c client) run(t *testing.T, p pod, arguments ...string) found {
	t.Helper()
	return c.runWith(t, p, nil, arguments...)
}

func (c client) runWith(t *testing.T, p pod, environ []string, arguments ...string) found {
	t.Helper()
	f, err := c.try(t, p, environ, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// try is runWith where there may be nothing, or a part only, which is an error. The
// client's environment has nothing of the test's, where AWS is configured for the server.
func (c client) try(t *testing.T, p pod, environ []string, arguments ...string) (f found, err error) {
	t.Helper()
	netns.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	words, err := c.command()
	if err != nil {
		return f, err
	}
	words = append(slices.Clip(words), arguments...)
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	command.Env = append(programs.Environ(t.TempDir(), s3Address, s3TLS), environ...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := p.Start(command); err != nil {
		return f, err
	}
	if err := command.Wait(); err != nil {
		return f, fmt.Errorf("%s: %w: %s%s", c.Name, err, stderr.String(), stdout.String())
	}
	if f, err = c.Read(stdout.Bytes()); err != nil {
		return f, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return f, nil
}

// wantNothing runs the client in the pod, which has to find nothing.
func (c client) wantNothing(t *testing.T, p pod, environ ...string) {
	t.Helper()
	if f, err := c.try(t, p, environ); err == nil || f.AccessKeyId != "" {
		t.Errorf("found %q, want an error", f.AccessKeyId)
	}
}

// wantOwn checks that credentials and region are those of the pod. A client that signs has
// shown secret and token to the fake S3; of the others one does not tell its secret.
func wantOwn(t *testing.T, p pod, f found) {
	t.Helper()
	issued, known := env.STS.Issued(f.AccessKeyId)
	switch {
	case !known || differs(f.SecretAccessKey, issued.SecretAccessKey) || differs(f.SessionToken, issued.SessionToken):
		t.Errorf("AccessKeyId %q, a secret of %d and a token of %d characters: not what STS has issued",
			f.AccessKeyId, len(f.SecretAccessKey), len(f.SessionToken))
	case issued.RoleARN != p.arn || issued.SessionName != p.sessionName:
		t.Errorf("credentials of %s for %s, want %s for %s", issued.RoleARN, issued.SessionName, p.arn, p.sessionName)
	case differs(f.Region, p.region):
		t.Errorf("region %q, want %q", f.Region, p.region)
	}
}

// differs tells of what a client printed. Program.Read sees to what it has to print.
func differs(printed, want string) bool { return printed != "" && printed != want }

// serveS3 runs the fake S3 until the test ends.
func serveS3(t *testing.T) {
	t.Helper()
	netns.AddLocal(t, s3Prefix)
	server := &http.Server{Handler: env.STS.S3(), TLSConfig: fakests.SelfSigned(), ReadHeaderTimeout: time.Minute}
	served := make(chan error, 2)
	for address, serve := range map[string]func(net.Listener) error{
		s3Address: server.Serve,
		s3TLS:     func(l net.Listener) error { return server.ServeTLS(l, "", "") },
	} {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		go func() { served <- serve(listener) }()
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		for range cap(served) {
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		}
	})
}
