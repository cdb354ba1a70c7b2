package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// roundRobin is an address in front of replicas, as kube-proxy makes one: each connection
// goes to the next replica and keeps its source address.
type roundRobin struct {
	listener net.Listener
	targets  atomic.Pointer[[]string]
	next     atomic.Uint64
	conns    sync.WaitGroup
}

func newRoundRobin(t *testing.T, replicas ...*environment.Server) *roundRobin {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &roundRobin{listener: listener}
	r.set(replicas...)
	r.conns.Go(r.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		r.conns.Wait()
	})
	return r
}

func (r *roundRobin) set(replicas ...*environment.Server) {
	var targets []string
	for _, replica := range replicas {
		targets = append(targets, replica.Address)
	}
	r.targets.Store(&targets)
}

func (r *roundRobin) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		targets := *r.targets.Load()
		target := targets[r.next.Add(1)%uint64(len(targets))]
		r.conns.Go(func() { forward(client, target) })
	}
}

func forward(client net.Conn, target string) {
	defer func() { _ = client.Close() }()
	from := netip.MustParseAddrPort(client.RemoteAddr().String()).Addr()
	replica, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}).Dial("tcp", target)
	if err != nil {
		return
	}
	defer func() { _ = replica.Close() }()
	// The first side that ends, ends both.
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, replica}, {replica, client}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			ended <- struct{}{}
		}()
	}
	<-ended
	_ = client.Close()
	_ = replica.Close()
	<-ended
}

// pod is a client of the round-robin address.
type pod struct {
	*http.Client
	address string
}

func (r *roundRobin) pod(t *testing.T, from netip.Addr, keepAlive bool) pod {
	t.Helper()
	transport := &http.Transport{
		DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}).DialContext,
		DisableKeepAlives: !keepAlive,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return pod{&http.Client{Transport: transport}, r.listener.Addr().String()}
}

// do sends one request; header is its name and value, or nothing.
func (p pod) do(ctx context.Context, method, path string, header ...string) (status int, body string, err error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+p.address+path, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	if len(header) > 0 {
		request.Header.Set(header[0], header[1])
	}
	response, err := p.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}

func (p pod) token(ctx context.Context) (string, error) {
	status, body, err := p.do(ctx, http.MethodPut, tokenPath, "X-aws-ec2-metadata-token-ttl-seconds", "21600")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("token: %d %s", status, body)
	}
	return body, err
}

func (p pod) use(ctx context.Context, path, token string) error {
	status, body, err := p.do(ctx, http.MethodGet, path, "X-aws-ec2-metadata-token", token)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s: %d %s", path, status, body)
	}
	return err
}

// tokenNamespace makes a namespace where servers may have their token key, so that the
// test does not disturb others by what it does to the key, and returns how to start one.
func tokenNamespace(t *testing.T, name string) server.Config {
	t.Helper()
	newNamespace(t, name)
	roles := env.Client.RbacV1()
	role, err := roles.Roles(environment.Namespace).Get(t.Context(), environment.ServiceAccount, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	binding, err := roles.RoleBindings(environment.Namespace).Get(t.Context(), environment.ServiceAccount, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, roleErr := roles.Roles(name).Create(t.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name}, Rules: role.Rules,
	}, metav1.CreateOptions{})
	_, bindingErr := roles.RoleBindings(name).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name}, RoleRef: binding.RoleRef, Subjects: binding.Subjects,
	}, metav1.CreateOptions{})
	if err := errors.Join(roleErr, bindingErr); err != nil {
		t.Fatal(err)
	}
	cfg := env.Config(t)
	cfg.Namespace = name
	cfg.IMDSv1 = false
	return cfg
}

func startReplica(t *testing.T, cfg server.Config) *environment.Server {
	t.Helper()
	s := env.Start(t, cfg)
	s.WaitReady(t)
	return s
}

func served(t *testing.T, s *environment.Server, endpoint string) float64 {
	t.Helper()
	return s.Metric(t, "iam4kube_http_requests_total", "endpoint", endpoint, "code", "200")
}

// Two replicas behind one address: every token is made by one and used at the other.
func TestTwoReplicas(t *testing.T) {
	t.Parallel()
	cfg := tokenNamespace(t, "two-replicas")
	w := newWorkload("two-replicas", "app").create(t)
	first, second := startReplica(t, cfg), startReplica(t, cfg)
	address := newRoundRobin(t, first, second)

	const pairs = 500
	client := address.pod(t, w.from, false) // a new connection each, so strictly in turn
	for i := range pairs {
		token, err := client.token(t.Context())
		if err != nil {
			t.Fatalf("request %d: %v", 2*i, err)
		}
		if err := client.use(t.Context(), w.path(), token); err != nil {
			t.Fatalf("request %d: %v", 2*i+1, err)
		}
		if i%2 == 0 { // one request out of turn, so that each makes tokens for the other
			if _, err := client.token(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, endpoint := range []string{"token", "credentials"} {
		for _, s := range []*environment.Server{first, second} {
			if n := served(t, s, endpoint); n < pairs/3 {
				t.Errorf("one replica has served only %v of %s", n, endpoint)
			}
		}
	}

	// Kept connections: two, of which each stays with its replica.
	kept := []pod{address.pod(t, w.from, true), address.pod(t, w.from, true)}
	before := address.next.Load()
	for i := range 100 {
		token, err := kept[i%2].token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := kept[1-i%2].use(t.Context(), w.path(), token); err != nil {
			t.Fatal(err)
		}
	}
	if opened := address.next.Load() - before; opened != 2 {
		t.Errorf("%d connections for two clients that keep theirs", opened)
	}

	// A replica that replaces both knows their tokens.
	old, err := client.token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	third := startReplica(t, cfg)
	address.set(third)
	if err := errors.Join(first.Stop(), second.Stop()); err != nil {
		t.Fatal(err)
	}
	if err := client.use(t.Context(), w.path(), old); err != nil {
		t.Errorf("a new replica refuses an old token: %v", err)
	}
}

// tokenKey changes the Secret as an administrator does.
type tokenKey struct {
	t         *testing.T
	namespace string
}

func (k tokenKey) get() *corev1.Secret {
	k.t.Helper()
	secret, err := env.Client.CoreV1().Secrets(k.namespace).Get(k.t.Context(), imdstoken.SecretName, metav1.GetOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	return secret
}

func (k tokenKey) set(data map[string][]byte) {
	k.t.Helper()
	secret := k.get()
	secret.Data = data
	if _, err := env.Client.CoreV1().Secrets(k.namespace).Update(k.t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		k.t.Fatal(err)
	}
}

// tokensOf makes and verifies tokens with one key alone.
func tokensOf(key []byte) *imdstoken.Keys {
	keys := imdstoken.NewKeys(nil, prometheus.NewRegistry(), zap.NewNop())
	keys.Resource().Sink.Set(&corev1.Secret{Data: map[string][]byte{imdstoken.CurrentKey: key}})
	return keys
}

// waitMakes returns when every replica makes its tokens with the key.
func waitMakes(t *testing.T, key []byte, w workload, replicas ...*environment.Server) {
	t.Helper()
	for _, s := range replicas {
		environment.Eventually(t, time.Minute, func() error {
			if !tokensOf(key).Verify(newToken(t, s, w.from, "60"), w.from, time.Now()) {
				return errors.New("a replica does not make tokens with the new key")
			}
			return nil
		})
	}
}

// waitVerifies returns when every replica accepts, or refuses, tokens of the key.
func waitVerifies(t *testing.T, key []byte, w workload, status int, replicas ...*environment.Server) {
	t.Helper()
	token, err := tokensOf(key).Make(w.from, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range replicas {
		environment.Eventually(t, time.Minute, func() error {
			if a := send(t, s, w.from, http.MethodGet, w.path(), tokenLine+token); a.StatusCode != status {
				return fmt.Errorf("a token of the key: %d, want %d", a.StatusCode, status)
			}
			return nil
		})
	}
}

// underLoad makes tokens and uses each once at once and once more at the end, while do
// runs; every one has to be accepted.
func underLoad(t *testing.T, address *roundRobin, w workload, do func()) {
	t.Helper()
	var stop atomic.Bool // between two requests, not in one
	defer stop.Store(true)
	client := address.pod(t, w.from, false)
	done := make(chan error, 1)
	var tokens []string
	go func() {
		for !stop.Load() {
			token, err := client.token(t.Context())
			if err == nil {
				err = client.use(t.Context(), w.path(), token)
			}
			if err != nil {
				done <- err
				return
			}
			tokens = append(tokens, token)
		}
		done <- nil
	}()
	do()
	stop.Store(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(tokens); i += 1 + len(tokens)/50 {
		if err := client.use(t.Context(), w.path(), tokens[i]); err != nil {
			t.Errorf("token %d of %d at the end: %v", i+1, len(tokens), err)
		}
	}
}

// The rotation that no client notices: the new key is first made known to every replica as
// the previous one; then the two are swapped, so that the new one makes tokens; and when
// the last token of the old one has expired, the old one is taken out.
func TestRotationOfTheTokenKey(t *testing.T) {
	t.Parallel()
	cfg := tokenNamespace(t, "rotation")
	w := newWorkload("rotation", "app").create(t)
	first, second := startReplica(t, cfg), startReplica(t, cfg)
	address := newRoundRobin(t, first, second)
	secret := tokenKey{t, "rotation"}
	old := secret.get().Data[imdstoken.CurrentKey]
	fresh := bytes.Repeat([]byte("new key "), 4)
	if len(old) < imdstoken.MinKeyLength {
		t.Fatalf("the first key has %d bytes", len(old))
	}

	underLoad(t, address, w, func() {
		secret.set(map[string][]byte{imdstoken.CurrentKey: old, imdstoken.PreviousKey: fresh})
		waitVerifies(t, fresh, w, http.StatusOK, first, second)
		secret.set(map[string][]byte{imdstoken.CurrentKey: fresh, imdstoken.PreviousKey: old})
		waitMakes(t, fresh, w, first, second)
		waitVerifies(t, old, w, http.StatusOK, first, second)
		waitVerifies(t, bytes.Repeat([]byte("unknown "), 4), w, http.StatusUnauthorized, first, second)
	})
	secret.set(map[string][]byte{imdstoken.CurrentKey: fresh})
	waitVerifies(t, old, w, http.StatusUnauthorized, first, second)
	waitVerifies(t, fresh, w, http.StatusOK, first, second)
}

// Mistakes with the Secret cost no token: deleted, it is made again with the same keys;
// spoilt, it is refused, told of, and the last good keys stay.
func TestTokenKeyDeletedOrSpoilt(t *testing.T) {
	t.Parallel()
	cfg := tokenNamespace(t, "spoilt-key")
	w := newWorkload("spoilt-key", "app").create(t)
	first, second := startReplica(t, cfg), startReplica(t, cfg)
	replicas := []*environment.Server{first, second}
	address := newRoundRobin(t, replicas...)
	secret := tokenKey{t, "spoilt-key"}
	previous := bytes.Repeat([]byte("previous"), 4)
	data := map[string][]byte{imdstoken.CurrentKey: secret.get().Data[imdstoken.CurrentKey], imdstoken.PreviousKey: previous}
	secret.set(data)
	waitVerifies(t, previous, w, http.StatusOK, replicas...)

	underLoad(t, address, w, func() {
		for range 3 {
			before := secret.get().UID
			if err := env.Client.CoreV1().Secrets("spoilt-key").Delete(t.Context(), imdstoken.SecretName, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			environment.Eventually(t, time.Minute, func() error {
				again, err := env.Client.CoreV1().Secrets("spoilt-key").Get(t.Context(), imdstoken.SecretName, metav1.GetOptions{})
				switch {
				case err != nil:
					return err
				case again.UID == before:
					return errors.New("not deleted yet")
				case !bytes.Equal(again.Data[imdstoken.CurrentKey], data[imdstoken.CurrentKey]) || !bytes.Equal(again.Data[imdstoken.PreviousKey], previous):
					t.Fatal("made again with other keys")
				}
				return nil
			})
		}
	})
	underLoad(t, address, w, func() {
		for i, spoilt := range []map[string][]byte{
			{}, {imdstoken.CurrentKey: []byte("short")}, {"key": previous}, {imdstoken.CurrentKey: previous, imdstoken.PreviousKey: []byte("short")},
		} {
			secret.set(spoilt)
			for _, s := range replicas {
				environment.Eventually(t, time.Minute, func() error {
					if n := s.Metric(t, "iam4kube_token_key_refused_total"); n < float64(i+1) {
						return fmt.Errorf("refused %v times, want %d", n, i+1)
					}
					return nil
				})
				if status, body := s.Readyz(t); status != http.StatusOK {
					t.Errorf("not ready because of a spoilt key: %s", body)
				}
			}
		}
	})
	waitMakes(t, data[imdstoken.CurrentKey], w, replicas...)
	// It takes part again as soon as it is good.
	fresh := bytes.Repeat([]byte("new key "), 4)
	secret.set(map[string][]byte{imdstoken.CurrentKey: fresh, imdstoken.PreviousKey: data[imdstoken.CurrentKey]})
	waitMakes(t, fresh, w, replicas...)
	for _, s := range replicas {
		for _, line := range s.Logs.Lines("the token key in the Secret is not usable, the last good keys stay in use") {
			if line["level"] != "error" || line["error"] == "" {
				t.Errorf("logged %v", line)
			}
		}
	}
}

// Replicas that start at once all find no Secret, and all end up with the same key: their
// requests are held back until every one is there.
func TestReplicasThatStartAtOnceShareOneKey(t *testing.T) {
	t.Parallel()
	cfg := tokenNamespace(t, "start-at-once")
	w := newWorkload("start-at-once", "app").create(t)
	config, err := env.ServiceAccountConfig(t.Context(), environment.Namespace, environment.ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	gate, err := controlplane.NewGate(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gate.Close)
	if err := gate.Set(controlplane.BlackHole); err != nil {
		t.Fatal(err)
	}
	cfg.Kubeconfig = env.Kubeconfig(t, gate.Config(config))
	const replicas = 4
	var servers []*environment.Server
	for range replicas {
		servers = append(servers, env.Start(t, cfg))
	}
	for _, s := range servers {
		if a := send(t, s, w.from, http.MethodPut, tokenPath, ttlLine+"60"); a.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("a token without a key: %d %s", a.StatusCode, a.body)
		}
		if status, body := s.Readyz(t); status != http.StatusServiceUnavailable {
			t.Errorf("ready without a key: %s", body)
		}
	}
	if err := gate.Set(controlplane.Pass); err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		s.WaitReady(t)
	}
	for _, maker := range servers {
		token := newToken(t, maker, w.from, "600")
		for _, verifier := range servers {
			if a := send(t, verifier, w.from, http.MethodGet, w.path(), tokenLine+token); a.StatusCode != http.StatusOK {
				t.Errorf("another replica's token: %d %s", a.StatusCode, a.body)
			}
		}
	}
	list, err := env.Client.CoreV1().Secrets("start-at-once").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("%d Secrets, %v", len(list.Items), err)
	}
}
