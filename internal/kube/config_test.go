package kube

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// get sends one request with the follower's client and returns how long the answer took.
func get(ctx context.Context, client *rest.RESTClient) (time.Duration, error) {
	start := time.Now()
	err := client.Get().AbsPath("/version").Do(ctx).Error()
	return time.Since(start), err
}

func newClient(t *testing.T, a *api, f files, reach *Reach) *rest.RESTClient {
	t.Helper()
	cfg := a.config(f, reach)
	client, err := rest.UnversionedRESTClientFor(unversioned(cfg))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func unversioned(cfg *rest.Config) *rest.Config {
	cfg.NegotiatedSerializer = rest.CodecFactoryForGeneratedClient(scheme.Scheme, scheme.Codecs)
	return cfg
}

// A connection on which nothing arrives any more is given up after the ping's two times, so
// that the next request can find a network that is alive again.
func TestDeadConnectionIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		client := newClient(t, a, a.files("first"), &Reach{})
		if _, err := get(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		a.set(func() { a.network = blackHole })
		took := within(t, time.Minute, func() bool { return a.connections() == 0 })
		if want := 10 * time.Second; took < want-time.Second || took > want+time.Second {
			t.Fatalf("given up after %v, want %v", took, want)
		}
	})
}

// A connection that is silent from the start is given up too.
func TestSilentServerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		client := newClient(t, a, a.files("first"), &Reach{})
		a.set(func() { a.network = blackHole })
		if took, err := get(t.Context(), client); err == nil || took != helloTimeout {
			t.Fatalf("%v after %v, want an error after %v", err, took, helloTimeout)
		}
		a.set(func() { a.network = reachable })
		if _, err := get(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		advance(10 * helloTimeout) // the deadline is for the first bytes only
		if n := a.connections(); n != 1 {
			t.Fatalf("%d connections, want the one that answered", n)
		}
	})
}

// What an operator has set in the environment stays.
func TestEnvironmentSetsPings(t *testing.T) {
	t.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "40")
	t.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "20")
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		client := newClient(t, a, a.files("first"), &Reach{})
		if _, err := get(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		a.set(func() { a.network = blackHole })
		took := within(t, 2*time.Minute, func() bool { return a.connections() == 0 })
		if took < 59*time.Second || took > 61*time.Second {
			t.Fatalf("given up after %v, want 1m", took)
		}
	})
}

// The kubelet exchanges a pod's token long before it expires; the client follows within
// a minute.
func TestTokenFileIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		a.token = "first"
		f := a.files("first")
		client := newClient(t, a, f, &Reach{})
		for _, token := range []string{"first", "second", "third"} {
			write(t, f.token, []byte(token))
			advance(time.Minute)
			a.set(func() { a.token = token })
			if _, err := get(t.Context(), client); err != nil {
				t.Fatalf("a minute after the file changed to %s: %v", token, err)
			}
		}
	})
}

// When the cluster's CA is exchanged, the client follows the file within the five minutes of
// client-go, and goes on giving up dead connections. Clusters exchange a CA by trusting both
// for a while, so nothing breaks meanwhile; here nothing did for readiness either.
func TestCAFileIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, f := synced(t)
		advance(time.Second)
		a.newCertificate()
		write(t, f.files.ca, a.ca)
		a.resetAll()
		a.create("after")
		took := within(t, 6*time.Minute, func() bool { return f.names.has("after") })
		t.Logf("the new CA was in use after %v", took)
		if err := f.watches.Broken(); err != nil {
			t.Fatal(err)
		}
		a.set(func() { a.network = blackHole })
		advance(11 * time.Second)
		a.create("missed")
		a.set(func() { a.network = reachable })
		took = within(t, 2*time.Second, func() bool { return f.names.has("missed") })
		t.Logf("caught up %v after a black hole", took)
	})
}

// Reach counts from the first answer after the last failure. A request that is taken back
// says nothing, one that is not answered in its time is a failure.
func TestReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		reach := &Reach{}
		client := newClient(t, a, a.files("first"), reach)
		want := func(want time.Duration) {
			t.Helper()
			if got := reach.For(time.Now()); got != want {
				t.Fatalf("answers for %v, want %v", got, want)
			}
		}
		want(0)
		_, _ = get(t.Context(), client)
		advance(time.Second)
		_, _ = get(t.Context(), client)
		want(time.Second)

		a.set(func() { a.network = blackHole })
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			advance(time.Second)
			cancel()
		}()
		_, _ = get(ctx, client)
		want(2 * time.Second)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = get(ctx, client)
		want(0)

		a.set(func() { a.network = reachable; a.token = "another" })
		_, _ = get(t.Context(), client) // 401
		advance(time.Second)
		want(time.Second)
		a.set(func() { a.network = refusing })
		_, _ = get(t.Context(), client)
		want(0)
	})
}
