package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/logging"
)

// certificateEvery is how often the files are read. A watch on them would be told at once,
// but the kernel's inotify instances are limited for each user of a node, whose other pods
// may have used them up; then there would be no certificate at all.
const certificateEvery = time.Second

var errNoCertificate = errors.New("no certificate yet")

// certificate is the server's, as the files say. One that is not usable does not take the
// place of one that is.
type certificate struct {
	certFile, keyFile string
	log               *zap.Logger
	current           atomic.Pointer[tls.Certificate]

	// Of the last look, for the one goroutine of Run.
	certPEM, keyPEM []byte
	told            string
}

func newCertificate(dir string, log *zap.Logger) *certificate {
	return &certificate{certFile: filepath.Join(dir, "tls.crt"), keyFile: filepath.Join(dir, "tls.key"), log: log}
}

// Run follows the files until ctx ends. They may come later than the program.
func (c *certificate) Run(ctx context.Context) error {
	ticker := time.NewTicker(certificateEvery)
	defer ticker.Stop()
	for {
		c.look()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look takes over what the files say, and tells of each change once.
func (c *certificate) look() {
	err := c.read()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == c.told {
		return
	}
	c.told = text
	switch {
	case err == nil:
	case c.current.Load() == nil:
		c.log.Warn("no usable certificate yet", zap.Error(err), zap.Duration(logging.Retry, certificateEvery))
	default:
		c.log.Warn("the new certificate is not usable, the old one stays", zap.Error(err), zap.Duration(logging.Retry, certificateEvery))
	}
}

func (c *certificate) read() error {
	certPEM, err := os.ReadFile(c.certFile)
	if err != nil {
		return err
	}
	keyPEM, err := os.ReadFile(c.keyFile)
	if err != nil {
		return err
	}
	if c.current.Load() != nil && bytes.Equal(certPEM, c.certPEM) && bytes.Equal(keyPEM, c.keyPEM) {
		return nil
	}
	// Between the two the files may have been replaced. Then they do not match, and the
	// next look finds both new.
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("%s and %s: %w", c.certFile, c.keyFile, err)
	}
	c.certPEM, c.keyPEM = certPEM, keyPEM
	c.current.Store(&pair)
	return nil
}

// Get is for tls.Config.GetCertificate.
func (c *certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	current := c.current.Load()
	if current == nil {
		return nil, errNoCertificate
	}
	return current, nil
}

// NotAfter is when the certificate expires, zero if there is none.
func (c *certificate) NotAfter() time.Time {
	current := c.current.Load()
	if current == nil {
		return time.Time{}
	}
	return current.Leaf.NotAfter
}

// Err is why the API server would not accept a connection.
func (c *certificate) Err() error {
	expires := c.NotAfter()
	switch {
	case expires.IsZero():
		return fmt.Errorf("%w in %s", errNoCertificate, filepath.Dir(c.certFile))
	case time.Now().After(expires):
		return fmt.Errorf("the certificate %s expired at %s", c.certFile, expires.UTC().Format(time.RFC3339))
	}
	return nil
}
