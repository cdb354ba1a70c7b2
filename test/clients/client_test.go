package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

// Folders of the clients that have to be built.
const (
	goV1 = "test/clients/gov1"
	goV2 = "test/clients/gov2"
)

// client is a real AWS client.
type client struct {
	name    string
	command func(t *testing.T) []string
	// read finds in what the command printed what is not in its JSON; nil: nothing.
	read func(output []byte, f *found)
}

// found is what a client finds without configuration, as it prints it.
type found struct {
	AccessKeyId, SecretAccessKey, SessionToken, Region string
	// Took is how long further tries took; the Go SDK's client only.
	Took []time.Duration
}

var (
	clientGoV2 = client{name: "aws-sdk-go-v2", command: built(goV2)}

	allClients = []client{
		clientGoV2,
		{name: "aws-sdk-go", command: built(goV1)},
		{name: "boto3", command: debian("/usr/bin/python3", "-B", "boto3/client.py")},
		{name: "awscli", command: debian("/bin/sh", "-c", "aws configure export-credentials && aws configure list"), read: regionOfCLI},
		{name: "aws-sdk-js-v3", command: nodeJS("js/client.mjs")},
	}
)

func built(folder string) func(*testing.T) []string {
	build := sync.OnceValues(func() (string, error) { return environment.Build(folder) })
	return func(t *testing.T) []string {
		t.Helper()
		program, err := build()
		if err != nil {
			t.Fatal(err)
		}
		return []string{program}
	}
}

func debian(command ...string) func(*testing.T) []string {
	return func(*testing.T) []string { return command }
}

func nodeJS(script string) func(*testing.T) []string {
	return func(t *testing.T) []string {
		t.Helper()
		program, err := exec.LookPath("node")
		if err != nil {
			t.Fatal(err, "; make test-tools installs it")
		}
		return []string{program, script}
	}
}

// regionOfCLI reads the table of `aws configure list`, whose row says where the region is
// from.
func regionOfCLI(output []byte, f *found) {
	if row := regexp.MustCompile(`region +(\S+) +imds`).FindSubmatch(output); row != nil {
		f.Region = string(row[1])
	}
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
	words := append(c.command(t), arguments...)
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	command.Env = append([]string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "HOME=" + t.TempDir()}, environ...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := p.Start(command); err != nil {
		return f, err
	}
	if err := command.Wait(); err != nil {
		return f, fmt.Errorf("%s: %w: %s", c.name, err, stderr.String())
	}
	if err := json.NewDecoder(bytes.NewReader(stdout.Bytes())).Decode(&f); err != nil {
		return f, fmt.Errorf("%s printed what cannot be read: %w; %s", c.name, err, stderr.String())
	}
	if c.read != nil {
		c.read(stdout.Bytes(), &f)
	}
	if f.AccessKeyId == "" || f.Region == "" {
		return f, fmt.Errorf("%s found AccessKeyId %q, region %q: %s", c.name, f.AccessKeyId, f.Region, stderr.String())
	}
	return f, nil
}

// wantOwn checks that credentials and region are those of the pod.
func wantOwn(t *testing.T, p pod, f found) {
	t.Helper()
	issued, known := env.STS.Issued(f.AccessKeyId)
	switch {
	case !known || issued.SecretAccessKey != f.SecretAccessKey || issued.SessionToken != f.SessionToken:
		t.Errorf("AccessKeyId %q, a secret of %d and a token of %d characters: not what STS has issued",
			f.AccessKeyId, len(f.SecretAccessKey), len(f.SessionToken))
	case issued.RoleARN != p.arn || issued.SessionName != p.sessionName:
		t.Errorf("credentials of %s for %s, want %s for %s", issued.RoleARN, issued.SessionName, p.arn, p.sessionName)
	case f.Region != p.region:
		t.Errorf("region %q, want %q", f.Region, p.region)
	}
}
