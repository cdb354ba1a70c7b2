package environment

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// authority issues the certificates of Issuers. The fake STS trusts it.
type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of the tests' issuers"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &authority{key, certificate}, err
}

// client trusts this authority and nobody else.
func (a *authority) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}}
}

func (a *authority) issue(t testing.TB, address net.IP) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "issuer"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{address}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Issuer is a web server over https with the documents of an OpenID Connect issuer. It has port
// 443, because IAM takes no other.
type Issuer struct {
	// URL is that of the issuer, CAFile whom its clients have to trust (SSL_CERT_FILE).
	URL, CAFile string
	// Client trusts it.
	Client *http.Client

	mu        sync.Mutex
	documents map[string][]byte
	reads     int
}

// NewIssuer starts one without documents, until the end of the test.
func (e *Environment) NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	address := e.Address().String()
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "443"))
	if err != nil {
		t.Fatalf("port 443 is needed, and root for it: %v", err)
	}
	i := &Issuer{URL: "https://" + address + "/cluster", CAFile: filepath.Join(t.TempDir(), "ca.crt"), Client: e.issuers.client()}
	server := httptest.NewUnstartedServer(i)
	_ = server.Listener.Close()
	server.Listener = listener
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{e.issuers.issue(t, net.ParseIP(address))}}
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.issuers.certificate.Raw})
	if err := os.WriteFile(i.CAFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

// Publish serves the files of a folder, and nothing besides.
func (i *Issuer) Publish(t testing.TB, folder string) {
	t.Helper()
	documents := map[string][]byte{}
	for _, path := range []string{".well-known/openid-configuration", "keys.json"} {
		content, err := os.ReadFile(filepath.Join(folder, path))
		if err != nil {
			t.Fatal(err)
		}
		documents["/cluster/"+path] = content
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.documents = documents
}

// Reads is how often documents were asked for.
func (i *Issuer) Reads() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.reads
}

// ServeHTTP implements http.Handler.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.reads++
	document, there := i.documents[r.URL.Path]
	if !there {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(document)
}
