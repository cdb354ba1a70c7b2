package server

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// lateRequests is how many requests TestAddressesThatChangeHands sends. The release's figure
// is for a million: go test ./server -run AddressesThatChangeHands -late-requests 1000000.
var lateRequests = flag.Int("late-requests", 50_000, "requests of TestAddressesThatChangeHands")

const (
	// lateFor is how late every watch is, and lateSlots how many addresses change hands.
	lateFor, lateSlots = 10 * time.Second, 32
)

// TestAddressesThatChangeHands: in a namespace that insists on tokens, addresses pass from one
// pod to the next while the server hears of it ten seconds later. Whatever the new pod asks by
// its address, it gets nothing of the old one's, whose address it is to the server; by its own
// token it gets its own credentials. Half of the new pods are of a namespace that does not
// insist, and get their own by their address in the end.
func TestAddressesThatChangeHands(t *testing.T) {
	late, kubeconfig := lateWatches(t)
	strict, lax := newNamespace(t, "late-strict"), newNamespace(t, "late-lax")
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:"token"}}}`, identity.LabelIdentity)
	if _, err := env.Client.CoreV1().Namespaces().Patch(t.Context(), strict, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	s, _ := env.StartReleased(t, "--log-level", "info", "--kubeconfig", kubeconfig, "--max-wait", "1m", "--sts-rate-limit", "1000", "--sts-rate-burst", "100")
	s.WaitReady(t)
	for _, resource := range []string{"pods", "serviceaccounts", "namespaces", "nodes"} {
		late.Late(resource, lateFor)
	}
	slots := make([]*slot, lateSlots)
	for i := range slots {
		slots[i] = &slot{strict: strict, lax: lax, number: i}
	}
	tally := &tally{}
	for round := 0; tally.requests.Load() < int64(*lateRequests); round++ {
		for _, one := range slots {
			one.change(t, round)
		}
		var all sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		for _, one := range slots {
			all.Go(func() { one.ask(ctx, t, s, tally) })
		}
		all.Wait()
		cancel()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d requests by address, %d of them answered with the pod's own, %d by token", tally.requests.Load(), tally.own.Load(), tally.tokens.Load())
	if tally.wrong.Load() != 0 {
		t.Errorf("%d answers with what is another pod's", tally.wrong.Load())
	}
	if tally.tokens.Load() == 0 || tally.own.Load() == 0 || tally.early.Load() < tally.requests.Load()/2 {
		t.Errorf("nothing was shown: %d requests came before the server knew of the pod", tally.early.Load())
	}
}

// tally counts answers: wrong ones, requests by address in all and before the pod was served
// by its token, those that were answered with what is the pod's own, and by token.
type tally struct{ wrong, requests, early, own, tokens atomic.Int64 }

// slot is an address with one pod after the other.
type slot struct {
	strict, lax string
	number      int
	// now has the address, before had it before; before is empty where nobody had.
	now, before workload
	token       string // of now
}

// change gives the address to another pod, which is there before the old one goes, as with a
// Deployment. One of a namespace that does not insist on tokens is not protected, so its
// address is not used again.
func (o *slot) change(t *testing.T, round int) {
	t.Helper()
	o.before = o.now
	namespace := o.strict
	if o.number%2 == 1 && round%2 == 1 {
		namespace = o.lax
	}
	if o.before.Namespace == o.lax {
		o.before = workload{}
	}
	o.now = newWorkload(namespace, fmt.Sprintf("app-%d-%d", o.number, round))
	o.now.createAccount(t, o.now.annotations())
	pending := o.now.Pod
	pending.IPs = nil
	created, err := env.CreatePod(t.Context(), pending)
	if err != nil {
		t.Fatal(err)
	}
	o.token = o.now.token(t)
	if o.before.Name != "" {
		o.now.from, o.now.IPs = o.before.from, o.before.IPs
		if err := env.DeletePod(t.Context(), o.before.Namespace, o.before.Name, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := env.SetPodStatus(t.Context(), created, controlplane.RunningStatus(o.now.IPs, nil)); err != nil {
		t.Fatal(err)
	}
}

// ask sends the pod's requests by address, one after the other, until one with its token, sent
// beside them, is answered.
func (o *slot) ask(ctx context.Context, t *testing.T, s *environment.Server, tally *tally) {
	t.Helper()
	served := make(chan struct{})
	go func() {
		defer close(served)
		o.byToken(ctx, t, s, tally)
	}()
	defer func() { <-served }()
	client, err := connectFrom(ctx, o.now.from, s.Address)
	if err != nil {
		t.Error(err)
		return
	}
	defer client.Close()
	paths := []string{rolesPath, containerPath, o.now.path(), readyPath, "/latest/meta-data/iam/info"}
	if o.before.Name != "" {
		paths = append(paths, o.before.path())
	}
	// Twice more after the pod is served by its token.
	for i, last := 0, -1; last != 0; i++ {
		early := true
		select {
		case <-served:
			early = false
			if last < 0 {
				last = 2 * len(paths)
			}
			last--
		case <-ctx.Done():
			t.Error(ctx.Err())
			return
		default:
		}
		status, body, err := client.get(paths[i%len(paths)])
		if err != nil {
			t.Errorf("%s: %v", o.now.Name, err)
			return
		}
		o.count(t, tally, paths[i%len(paths)], status, body, early)
	}
}

func (o *slot) count(t *testing.T, tally *tally, path string, status int, body string, early bool) {
	t.Helper()
	tally.requests.Add(1)
	if early {
		tally.early.Add(1)
	}
	if status != http.StatusOK {
		return
	}
	own := o.now.Namespace == o.lax
	switch path {
	case rolesPath:
		own = own && body == role.Role{ARN: o.now.arn}.Name()
	case "/latest/meta-data/iam/info":
		own = own && strings.Contains(body, role.Role{ARN: o.now.arn}.Name())
	default:
		own = own && ownerOf(body) == o.now.arn
	}
	if !own {
		if tally.wrong.Add(1) <= 3 {
			t.Logf("%s, which had %s before it, got %s: %s", o.now.Name, o.before.Name, path, body)
		}
		return
	}
	tally.own.Add(1)
}

// byToken asks with the pod's own token, which waits until the server knows whose address it is.
func (o *slot) byToken(ctx context.Context, t *testing.T, s *environment.Server, tally *tally) {
	t.Helper()
	response, body, err := s.Do(ctx, s.Client(t, o.now.from), http.MethodGet, containerPath, http.Header{"Authorization": {o.token}})
	switch {
	case err != nil:
		t.Errorf("%s: %v", o.now.Name, err)
	case response.StatusCode != http.StatusOK:
		t.Errorf("%s by its token: %d %s", o.now.Name, response.StatusCode, body)
	case ownerOf(body) != o.now.arn:
		tally.wrong.Add(1)
		t.Logf("%s by its token: %s", o.now.Name, body)
	default:
		tally.tokens.Add(1)
	}
}

// ownerOf is the role that STS issued the credentials for, empty if it did not.
func ownerOf(body string) string {
	var d struct{ AccessKeyId, SecretAccessKey, Token string }
	if json.Unmarshal([]byte(body), &d) != nil {
		return ""
	}
	issued, _ := env.STS.Issued(d.AccessKeyId)
	if issued.SecretAccessKey != d.SecretAccessKey || issued.SessionToken != d.Token {
		return ""
	}
	return issued.RoleARN
}

// plainClient is a connection from an address, for many requests one after the other.
type plainClient struct {
	net.Conn
	reader *bufio.Reader
}

func connectFrom(ctx context.Context, from netip.Addr, to string) (*plainClient, error) {
	connection, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}).DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	return &plainClient{connection, bufio.NewReader(connection)}, nil
}

func (c *plainClient) get(path string) (status int, body string, err error) {
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return 0, "", err
	}
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"); err != nil {
		return 0, "", err
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}
