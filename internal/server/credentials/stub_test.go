package credentials

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// stub is an STS behind the real limiter. The whole protocol is in the tests of module
// test/; here simulated days have to be cheap.
type stub struct {
	*sts.Limiter
	assume func(context.Context, role.Role) (*sts.Credentials, error)
}

func (s stub) AssumeRole(ctx context.Context, r role.Role) (*sts.Credentials, error) {
	return s.assume(ctx, r)
}

var errDenied = &sts.Error{Kind: sts.Denied, Code: "AccessDenied", Message: "not authorized"}

// newCache returns a cache at rate 10 and burst 20.
func newCache(assume func(context.Context, role.Role) (*sts.Credentials, error)) *Cache {
	return newCacheAt(10, 20, assume)
}

func newCacheAt(perSecond float64, burst int, assume func(context.Context, role.Role) (*sts.Credentials, error)) *Cache {
	return New(stub{sts.NewLimiter(perSecond, burst), assume}, waiting.NewHub(1_000_000, 1_000_000), prometheus.NewRegistry(), zap.NewNop())
}

// start runs the cache until the test ends.
func start(t *testing.T, c *Cache) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// issue gives credentials for as long as the role asks.
func issue(_ context.Context, r role.Role) (*sts.Credentials, error) {
	return issuedFor(r.Duration), nil
}

func issuedFor(life time.Duration) *sts.Credentials {
	now := time.Now()
	return &sts.Credentials{
		AccessKeyID: "ASIA2222222222222222", SecretAccessKey: "secret-key-never-to-be-seen", SessionToken: "session-token-never-to-be-seen",
		Issued: now, Expiration: now.Add(life).Round(0).UTC(), // STS's word has no monotonic clock
	}
}

// named are the roles that roleOf has made.
var (
	namedMu sync.Mutex
	named   = map[string]*role.Role{}
)

// roleOf is the role of the ServiceAccount, which has one.
func roleOf(namespace, account string) *role.Role {
	namedMu.Lock()
	defer namedMu.Unlock()
	session := namespace + "@" + account
	if named[session] == nil {
		named[session] = &role.Role{
			ARN: "arn:aws:iam::123456789012:role/" + account, SessionName: session, Duration: time.Hour,
			Namespace: namespace, ServiceAccount: account,
		}
	}
	return named[session]
}

func rolesOf(namespace string, n int) (roles []*role.Role) {
	for i := range n {
		roles = append(roles, roleOf(namespace, fmt.Sprintf("app%d", i)))
	}
	return roles
}

// watch is somebody who waits for the role until the test ends.
func watch(t *testing.T, c *Cache, r *role.Role) {
	t.Helper()
	waiter, err := c.hub.Join(waiterAddress, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(waiter.Leave)
	waiter.Watch(r)
	c.Nudge(r)
}

// advance lets simulated time pass; use it in bubbles of testing/synctest alone.
func advance(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // costs no real time
}
