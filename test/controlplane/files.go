package controlplane

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"

	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// adminUser is the user of Config, whose requests are not audited.
const adminUser = "test-admin"

// auditPolicy keeps the log to what the programs under test ask, one line when a watch
// begins or a response ends.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [` + adminUser + `, "system:apiserver"]
- level: Metadata
`

type credentials struct {
	adminToken    string
	caCertificate []byte
}

// writeFiles writes what kube-apiserver reads: they stay the same when it is restarted.
func writeFiles(dir string) (credentials, error) {
	// The certificate's file holds its CA too.
	certificate, key, err := certutil.GenerateSelfSignedCertKey("localhost", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		return credentials{}, fmt.Errorf("making the API server's certificate: %w", err)
	}
	tokenKey, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return credentials{}, fmt.Errorf("making the key of ServiceAccount tokens: %w", err)
	}
	admin := rand.Text()
	for name, content := range map[string][]byte{
		"tls.crt":     certificate,
		"tls.key":     key,
		"token.key":   tokenKey,
		"tokens.csv":  fmt.Appendf(nil, "%s,%s,%s,system:masters\n", admin, adminUser, adminUser),
		"policy.yaml": []byte(auditPolicy),
		"audit.log":   nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return credentials{}, err
		}
	}
	return credentials{adminToken: admin, caCertificate: certificate}, nil
}

func (cp *ControlPlane) etcdArgs() []string {
	client, peer := "http://"+cp.etcdPort.addr(), "http://"+cp.peerPort.addr()
	return []string{
		"--data-dir=" + cp.path("etcd"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=default=" + peer,
		"--log-level=warn",
		"--unsafe-no-fsync",
		// 50,000 pods of 10 KB in a few revisions each pass the default of 2 GiB.
		"--quota-backend-bytes=8589934592",
	}
}

func (cp *ControlPlane) apiServerArgs() []string {
	args := []string{
		"--etcd-servers=http://" + cp.etcdPort.addr(),
		"--bind-address=127.0.0.1",
		"--secure-port=" + fmt.Sprint(cp.apiPort.number),
		"--tls-cert-file=" + cp.path("tls.crt"),
		"--tls-private-key-file=" + cp.path("tls.key"),
		"--token-auth-file=" + cp.path("tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + cp.path("token.key"),
		"--service-account-signing-key-file=" + cp.path("token.key"),
		"--service-cluster-ip-range=10.96.0.0/16",
		"--authorization-mode=RBAC",
		"--audit-policy-file=" + cp.path("policy.yaml"),
		"--audit-log-path=" + cp.AuditLog(),
		"--audit-log-mode=blocking",
		// Without a default route the API server finds no address to advertise and does
		// not start. Nobody connects to this one (RFC 5737).
		"--advertise-address=192.0.2.1",
		"--endpoint-reconciler-type=none",
		"--allow-privileged=true",
	}
	if !cp.options.ServiceAccountAdmission {
		args = append(args, "--disable-admission-plugins=ServiceAccount")
	}
	return append(args, cp.options.APIServerArgs...)
}

// AuditLog is the API server's audit log at level Metadata, a JSON object per line. The
// requests of Config and Client are left out. A line is written when a response ends,
// or, for a watch, begins: a moment after the client may have seen it.
func (cp *ControlPlane) AuditLog() (path string) { return cp.path("audit.log") }
