package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// pair makes a certificate that is valid until then, and its key.
func pair(t *testing.T, notAfter time.Time) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: notAfter}
	certDER, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// A certificate is followed from before it is there, through halves and garbage, and tells
// of each state once.
func TestCertificateIsFollowed(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		c := newCertificate(dir, zap.New(core))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		first, second := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(2*time.Hour).Truncate(time.Second)
		firstCert, firstKey := pair(t, first)
		secondCert, secondKey := pair(t, second)
		for _, step := range []struct {
			name, file string
			content    []byte
			want       time.Time
			log        string
		}{
			{name: "nothing", log: "no usable certificate yet"},
			{"half", "tls.crt", firstCert, time.Time{}, "no usable certificate yet"}, // another cause
			{"whole", "tls.key", firstKey, first, ""},
			{"the other's certificate", "tls.crt", secondCert, first, "the new certificate is not usable, the old one stays"},
			{"the other", "tls.key", secondKey, second, ""},
			{"garbage", "tls.crt", []byte("garbage"), second, "the new certificate is not usable, the old one stays"},
			{"empty", "tls.crt", nil, second, ""}, // the same cause
			{"back", "tls.crt", secondCert, second, ""},
		} {
			if step.file != "" {
				write(step.file, step.content)
			}
			wait(5 * certificateEvery)
			if !c.NotAfter().Equal(step.want) {
				t.Errorf("%s: valid until %v, want %v", step.name, c.NotAfter(), step.want)
			}
			var told []string
			for _, line := range logs.TakeAll() {
				told = append(told, line.Message)
			}
			if strings.Join(told, "; ") != step.log {
				t.Errorf("%s: logged %q, want %q", step.name, told, step.log)
			}
		}
		for _, fd := range openFiles(t) {
			if strings.Contains(fd, "inotify") {
				t.Error("the files are watched by inotify, whose instances others can use up")
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// openFiles is what the descriptors of this process are.
func openFiles(t *testing.T) (open []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil { // that of the folder is closed
			open = append(open, name)
		}
	}
	return open
}

// wait lets time pass in the bubble.
func wait(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // how a bubble's clock is advanced
	synctest.Wait()
}
