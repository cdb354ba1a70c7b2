package imdstoken

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	caller = netip.MustParseAddr("10.1.2.3")
	key    = bytes.Repeat([]byte{1}, MinKeyLength)
	other  = bytes.Repeat([]byte{2}, MinKeyLength)
)

// newKeys returns Keys that follow no API server; the test is what changes the Secret.
func newKeys(t *testing.T) *Keys {
	t.Helper()
	return NewKeys(nil, prometheus.NewRegistry(), zap.NewNop())
}

func secret(data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: SecretName}, Data: data}
}

func (k *Keys) set(data map[string][]byte) { k.Resource().Sink.Set(secret(data)) }

func mustMake(t *testing.T, k *Keys, ttl time.Duration) string {
	t.Helper()
	token, err := k.Make(caller, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// A token lives exactly as long as was asked for, wherever within a second it is made:
// the TTLs are those that SDKs ask for, and the two bounds.
func TestTokenLivesForItsTTL(t *testing.T) {
	for _, seconds := range []int{1, 10, 60, 300, 600, MaxTTL} {
		for _, within := range []time.Duration{0, 500 * time.Millisecond, 999 * time.Millisecond} {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(within) //nolint:forbidigo // moves the bubble's clock
				k := newKeys(t)
				k.set(map[string][]byte{CurrentKey: key})
				ttl := time.Duration(seconds) * time.Second
				token := mustMake(t, k, ttl)
				if !k.Verify(token, caller, time.Now()) {
					t.Fatalf("TTL %v, made at %v of a second: refused at once", ttl, within)
				}
				time.Sleep(ttl - time.Millisecond) //nolint:forbidigo // moves the bubble's clock
				if !k.Verify(token, caller, time.Now()) {
					t.Errorf("TTL %v, made at %v of a second: refused a millisecond before its end", ttl, within)
				}
				time.Sleep(time.Millisecond) //nolint:forbidigo // moves the bubble's clock
				if k.Verify(token, caller, time.Now()) {
					t.Errorf("TTL %v, made at %v of a second: accepted at its end", ttl, within)
				}
			})
		}
	}
}

// Clients pass tokens on as they are, in headers, shells and URLs.
func TestTokenIsPlainText(t *testing.T) {
	k := newKeys(t)
	k.set(map[string][]byte{CurrentKey: key})
	for range 100 {
		token := mustMake(t, k, time.Minute)
		if len(token) < 32 || strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			t.Fatalf("token %q", token)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	k := newKeys(t)
	k.set(map[string][]byte{CurrentKey: key})
	token := mustMake(t, k, time.Hour)
	refused := func(what, token string) {
		t.Helper()
		if k.Verify(token, caller, time.Now()) {
			t.Errorf("%s: %q is accepted", what, token)
		}
	}
	for i := range token {
		for c := range 256 {
			if byte(c) != token[i] {
				refused("one byte changed", token[:i]+string([]byte{byte(c)})+token[i+1:])
			}
		}
		refused("truncated", token[:i])
		refused("one byte left out", token[:i]+token[i+1:])
		refused("one byte doubled", token[:i]+token[i:i+1]+token[i:])
	}
	refused("twice", token+token)
	refused("padded", token+"=")
	refused("spaces around", " "+token+" ")
	refused("a line break", token+"\n")
	// Line breaks decode to nothing, so these have the right length and no content.
	refused("only line breaks", strings.Repeat("\n", len(token)))
	refused("line breaks behind 8 bytes", token[:11]+strings.Repeat("\r", len(token)-11))
	for _, address := range []string{"10.1.2.4", "::ffff:10.1.2.4", "::a01:203", "fe80::10.1.2.3", "::"} {
		if k.Verify(token, netip.MustParseAddr(address), time.Now()) {
			t.Errorf("accepted from %s", address)
		}
	}
	if k.Verify(token, netip.Addr{}, time.Now()) {
		t.Error("accepted from no address")
	}
}

func TestNoKeyMakesAndAcceptsNothing(t *testing.T) {
	k := newKeys(t)
	if _, err := k.Make(caller, time.Minute); err == nil || k.Known() {
		t.Errorf("made a token without a key: %v", err)
	}
	// What a replica without keys must never take for a signature: that of an empty key.
	for _, forged := range [][]byte{nil, {}} {
		if k.Verify(newToken(newSigner(forged), caller, time.Now().Add(time.Hour)), caller, time.Now()) {
			t.Error("accepted a token without a key")
		}
	}
}

// Rotation as the documentation asks for it: the new key first into previous, so that
// every replica knows it before any makes tokens with it; then the two are swapped.
func TestRotation(t *testing.T) {
	behind, ahead := newKeys(t), newKeys(t) // two replicas that see each step at different times
	accepted := func(step, token string) {
		t.Helper()
		if !behind.Verify(token, caller, time.Now()) || !ahead.Verify(token, caller, time.Now()) {
			t.Errorf("%s: a token is refused", step)
		}
	}
	var tokens []string
	steps := []map[string][]byte{
		{CurrentKey: key},
		{CurrentKey: key, PreviousKey: other},
		{CurrentKey: other, PreviousKey: key},
	}
	behind.set(steps[0])
	for _, step := range steps {
		ahead.set(step)
		tokens = append(tokens, mustMake(t, behind, time.Hour), mustMake(t, ahead, time.Hour))
		for _, token := range tokens {
			accepted("one replica ahead", token)
		}
		behind.set(step)
		for _, token := range tokens {
			accepted("both the same", token)
		}
	}
	// Once the old key is out, its tokens are refused and the new key's are not.
	ahead.set(map[string][]byte{CurrentKey: other})
	if ahead.Verify(tokens[0], caller, time.Now()) || !ahead.Verify(tokens[len(tokens)-1], caller, time.Now()) {
		t.Error("the old key is still in use, or the new one is not")
	}
}

// Whoever rotates the key sees in the log that a replica has it; a Secret that says the same
// again, or the first one, is no rotation.
func TestRotationIsLogged(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	k := NewKeys(nil, prometheus.NewRegistry(), zap.New(core))
	k.set(map[string][]byte{CurrentKey: key})
	k.set(map[string][]byte{CurrentKey: key})
	k.set(map[string][]byte{CurrentKey: key, PreviousKey: other})
	k.set(map[string][]byte{CurrentKey: key, PreviousKey: other})
	k.set(map[string][]byte{CurrentKey: other, PreviousKey: key})
	k.set(map[string][]byte{CurrentKey: other})
	var got []string
	for _, line := range logs.All() {
		got = append(got, fmt.Sprint(line.ContextMap()))
	}
	if want := []string{"map[kind:previous]", "map[kind:current]", "map[kind:previous]"}; !slices.Equal(got, want) {
		t.Errorf("logged %q, want %q", got, want)
	}
}

func TestUnusableSecretKeepsTheLastGoodKeys(t *testing.T) {
	short, long := key[:MinKeyLength-1], bytes.Repeat(key, 1+MaxKeyLength/MinKeyLength)
	for name, data := range map[string]map[string][]byte{
		"no data":        nil,
		"no current key": {PreviousKey: key},
		"empty":          {CurrentKey: {}},
		"short":          {CurrentKey: short},
		"short previous": {CurrentKey: other, PreviousKey: short},
		"other name":     {"key": other},
		"long":           {CurrentKey: long},
		"long previous":  {CurrentKey: other, PreviousKey: long},
	} {
		t.Run(name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			k := NewKeys(nil, registry, zap.NewNop())
			k.set(data)
			if k.Known() {
				t.Fatal("a bad key is in use")
			}
			k.set(map[string][]byte{CurrentKey: key})
			token := mustMake(t, k, time.Hour)
			k.set(data)
			if !k.Verify(token, caller, time.Now()) {
				t.Error("the good key is not in use any more")
			}
			if again := mustMake(t, k, time.Hour); k.Verify(again, netip.MustParseAddr("10.1.2.4"), time.Now()) || !k.Verify(again, caller, time.Now()) {
				t.Error("new tokens are not made with the good key")
			}
			families, err := registry.Gather()
			if err != nil || len(families) != 1 || families[0].GetMetric()[0].GetCounter().GetValue() != 2 {
				t.Errorf("want 2 refusals in the metric, got %v, %v", families, err)
			}
		})
	}
}

// Empty stands for absent: kubectl and manifests write it for a key without a value.
func TestEmptyPreviousKeyIsNoKey(t *testing.T) {
	k := newKeys(t)
	k.set(map[string][]byte{CurrentKey: key, PreviousKey: {}})
	if !k.Known() || k.Verify(newToken(newSigner(nil), caller, time.Now().Add(time.Hour)), caller, time.Now()) {
		t.Error("the empty key is in use, or the good one is not")
	}
}

// A token that was verified is accepted again without its signature, from its address alone,
// until its end, and not by keys that did not sign it.
func TestVerifiedTokensAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeys(t)
		k.set(map[string][]byte{CurrentKey: key})
		token := mustMake(t, k, time.Minute)
		for range 2 {
			if !k.Verify(token, caller, time.Now()) {
				t.Fatal("the token is refused")
			}
		}
		if allocs := testing.AllocsPerRun(100, func() { k.Verify(token, caller, time.Now()) }); allocs > 0 {
			t.Errorf("%v allocations: it is verified anew", allocs)
		}
		if k.Verify(token, netip.MustParseAddr("10.1.2.4"), time.Now()) || !k.Verify(token, caller, time.Now()) {
			t.Error("another address's token is accepted, or its own is not any more")
		}
		k.set(map[string][]byte{CurrentKey: bytes.Repeat([]byte{7}, MinKeyLength), PreviousKey: key})
		for range 2 {
			if !k.Verify(token, caller, time.Now()) {
				t.Error("the token of the previous key is refused")
			}
		}
		time.Sleep(time.Minute) //nolint:forbidigo // moves the bubble's clock
		if k.Verify(token, caller, time.Now()) {
			t.Error("the token is accepted at its end")
		}
		token = mustMake(t, k, time.Minute)
		if !k.Verify(token, caller, time.Now()) {
			t.Fatal("the token is refused")
		}
		k.set(map[string][]byte{CurrentKey: key})
		if k.Verify(token, caller, time.Now()) {
			t.Error("the token of a key that is gone is accepted")
		}
	})
}

func FuzzVerify(f *testing.F) {
	k := NewKeys(nil, prometheus.NewRegistry(), zap.NewNop())
	k.set(map[string][]byte{CurrentKey: key})
	// The same in every process of the fuzzer.
	token := newToken(newSigner(key), caller, time.Date(9999, time.January, 1, 0, 0, 0, 0, time.UTC))
	for _, seed := range []string{"", token, token[1:], strings.Repeat("\n", len(token)), strings.Repeat("A", len(token))} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if k.Verify(text, caller, time.Now()) != (text == token) {
			t.Errorf("%q: accepted, or the good one refused", text)
		}
	})
}
