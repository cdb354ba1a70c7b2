package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// pki is the cluster's one certificate authority.
type pki struct {
	dir  string
	key  crypto.Signer
	cert *x509.Certificate
	last int64
}

func newPKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := certutil.NewSelfSignedCACert(certutil.Config{CommonName: "cluster-ca"}, key)
	if err != nil {
		return nil, err
	}
	p := &pki{dir: dir, key: key, cert: cert, last: 1}
	return p, os.WriteFile(p.path("ca.crt"), p.authority(), 0o600)
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) authority() []byte { return certPEM(p.cert.Raw) }

func certPEM(der []byte) []byte {
	// It cannot fail for what was just made.
	text, _ := certutil.EncodeCertificates(&x509.Certificate{Raw: der})
	return text
}

// issue makes a certificate for a user, or for a server with these addresses and names.
func (p *pki) issue(subject pkix.Name, addresses []net.IP, names ...string) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	p.last++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(p.last),
		Subject:      subject,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses:  addresses,
		DNSNames:     names,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.cert, private.Public(), p.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = keyutil.MarshalPrivateKeyToPEM(private)
	return certPEM(der), key, err
}

// write issues a certificate into NAME.crt and NAME.key.
func (p *pki) write(name string, subject pkix.Name, addresses []net.IP, names ...string) error {
	cert, key, err := p.issue(subject, addresses, names...)
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.path(name+".crt"), cert, 0o600); err != nil {
		return err
	}
	return os.WriteFile(p.path(name+".key"), key, 0o600)
}

// kubeconfig writes a file for a user of the API server.
func (p *pki) kubeconfig(path, server, user string, groups ...string) error {
	cert, key, err := p.issue(pkix.Name{CommonName: user, Organization: groups}, nil)
	if err != nil {
		return err
	}
	file := clientcmdapi.NewConfig()
	file.Clusters["iam4kube"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: p.authority()}
	file.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	file.Contexts["iam4kube"] = &clientcmdapi.Context{Cluster: "iam4kube", AuthInfo: user}
	file.CurrentContext = "iam4kube"
	return clientcmd.WriteToFile(*file, path)
}
