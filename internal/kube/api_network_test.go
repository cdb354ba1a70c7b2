package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Accept implements net.Listener.
func (a *api) Accept() (net.Conn, error) {
	select {
	case c := <-a.accept:
		return c, nil
	case <-a.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (a *api) Close() error {
	close(a.closed)
	return nil
}

// Addr implements net.Listener.
func (a *api) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 6443} }

// dial stands in for the network below awaitHello. A black hole accepts, as the kernel
// of a host whose API server hangs.
func (a *api) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	a.mu.Lock()
	if a.network == refusing {
		a.mu.Unlock()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	client, near := net.Pipe()
	far, server := net.Pipe()
	l := &link{api: a, ends: []net.Conn{near, far}, done: make(chan struct{})}
	a.links[l] = struct{}{}
	a.mu.Unlock()
	go l.pump(far, near, l.reset)
	go l.pump(near, far, func() {})
	select {
	case a.accept <- server:
	case <-ctx.Done():
		l.reset()
		return nil, ctx.Err()
	}
	return awaitHello(client)
}

// link is one connection. What is written to it is taken at once, as by a kernel's
// buffer, and moves on while the network is reachable.
type link struct {
	api  *api
	ends []net.Conn
	once sync.Once
	done chan struct{}
}

func (l *link) reset() {
	l.once.Do(func() {
		close(l.done)
		for _, end := range l.ends {
			_ = end.Close()
		}
	})
}

// pump moves bytes one way; closed is called when the writer has closed its end.
func (l *link) pump(to, from net.Conn, closed func()) {
	buffered := make(chan []byte, 1000)
	go func() {
		defer close(buffered)
		for {
			b := make([]byte, 4096)
			n, err := from.Read(b)
			if err != nil {
				closed()
				return
			}
			buffered <- b[:n]
		}
	}()
	defer l.reset()
	for b := range buffered {
		if !l.wait() {
			break
		}
		if _, err := to.Write(b); err != nil {
			break
		}
	}
	l.reset()
	for range buffered { // so that the reader never blocks
	}
}

// wait returns when the network is reachable, false if the link ended before.
func (l *link) wait() bool {
	for {
		l.api.mu.Lock()
		changed, state := l.api.changed, l.api.network
		l.api.mu.Unlock()
		if state != blackHole {
			return state == reachable
		}
		select {
		case <-changed:
		case <-l.done:
			return false
		}
	}
}

// newCertificate makes a certificate that signs itself; ca is its PEM.
func (a *api) newCertificate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: fmt.Sprint("ca-", time.Now().UnixNano())},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.set(func() {
		a.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		a.certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	})
}
