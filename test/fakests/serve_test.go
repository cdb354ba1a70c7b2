package fakests_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/iam4kube/iam4kube/test/fakests"
)

func TestEnviron(t *testing.T) {
	server := start(t, newFake())
	want := []string{
		"AWS_ENDPOINT_URL_STS=" + server.URL, "AWS_REGION=us-east-1",
		"AWS_ACCESS_KEY_ID=" + serverKey.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + serverKey.SecretAccessKey,
	}
	if got := server.Environ(serverKey); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !strings.HasPrefix(server.URL, "http://127.0.0.1:") {
		t.Errorf("listens on %s", server.URL)
	}
}

func TestClosedServerRefuses(t *testing.T) {
	for name, open := range map[string]func(*fakests.Fake) *fakests.Server{
		"loopback": (*fakests.Fake).Start, "pipe": (*fakests.Fake).StartPipe,
	} {
		server := open(newFake())
		if _, err := assume(t, serverClient(server)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		server.Close()
		if _, err := assume(t, serverClient(server)); err == nil {
			t.Errorf("%s: answered after Close", name)
		}
	}
}

// A bubble fails when a goroutine is left at its end.
func TestCloseLeavesNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newFake().StartPipe()
		for range 3 {
			if _, err := assume(t, serverClient(server)); err != nil {
				t.Error(err)
			}
		}
		server.Close()
	})
}
