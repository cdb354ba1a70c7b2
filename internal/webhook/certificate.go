package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"

	"github.com/iam4kube/iam4kube/internal/logging"
)

// certificateRetry is the pause before a certificate that is missing is looked for again.
const certificateRetry = time.Second

var errNoCertificate = errors.New("no certificate yet")

// certificate is the server's, as the files say. One that is not usable does not take the
// place of one that is.
type certificate struct {
	certFile, keyFile string
	log               *zap.Logger
	watcher           atomic.Pointer[certwatcher.CertWatcher]
}

func newCertificate(dir string, log *zap.Logger) *certificate {
	return &certificate{certFile: filepath.Join(dir, "tls.crt"), keyFile: filepath.Join(dir, "tls.key"), log: log}
}

// Run follows the files until ctx ends. They may come later than the program.
func (c *certificate) Run(ctx context.Context) error {
	for told := false; ctx.Err() == nil; {
		if err := c.follow(ctx); err != nil && !told {
			told = true
			c.log.Warn("no usable certificate yet", zap.Error(err), zap.Duration(logging.Retry, certificateRetry))
		}
		timer := time.NewTimer(certificateRetry)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

func (c *certificate) follow(ctx context.Context) error {
	watcher, err := certwatcher.New(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	c.watcher.Store(watcher)
	if err := watcher.Start(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

// Get is for tls.Config.GetCertificate.
func (c *certificate) Get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	watcher := c.watcher.Load()
	if watcher == nil {
		return nil, errNoCertificate
	}
	return watcher.GetCertificate(hello)
}

// NotAfter is when the certificate expires, zero if there is none.
func (c *certificate) NotAfter() time.Time {
	current, err := c.Get(nil)
	if err != nil {
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
