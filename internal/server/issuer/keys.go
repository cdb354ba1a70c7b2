package issuer

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/keyutil"
)

const (
	// SecretName is the Secret with the keys, in the server's own namespace.
	SecretName = "iam4kube-issuer-key"
	// CurrentKey, NextKey and PreviousKey are the keys of its data, in PEM. Tokens are signed
	// with the current one, a private key. The next one is private, too; it is published and
	// signs nothing yet. Of the previous one there is the public part alone. Only the first
	// has to be there.
	CurrentKey, NextKey, PreviousKey = "current", "next", "previous"
	// AnnotationPublished of the Secret says since when the next key was seen at the issuer's
	// URL, AnnotationChanged when the current key became that, both in RFC 3339.
	AnnotationPublished = "iam4kube.io/next-key-published"
	AnnotationChanged   = "iam4kube.io/current-key-since"
)

// Bits of RSA keys: what is made, and what is accepted. RS256 is the one algorithm that AWS
// documents for all; each token costs a signature, a millisecond with 2048.
const (
	newBits          = 2048
	minBits, maxBits = 2048, 4096
	maxPEM           = 8 << 10 // of 4096 bits, 3.3 KB
)

// key is one of the Secret's.
type key struct {
	// id is the key's thumbprint (RFC 7638, SHA-256), in base64url.
	id      string
	public  *rsa.PublicKey
	private *rsa.PrivateKey // nil for the previous one
}

// set is what a usable Secret holds. Only current is never nil.
type set struct {
	current, next, previous *key
	changed, published      time.Time // zero: not said
	// data and annotations are those of the Secret, to make it anew.
	data        map[string][]byte
	annotations map[string]string
}

// parse reads the Secret, or says why none of it can be used.
func parse(secret *corev1.Secret) (*set, error) {
	s := &set{data: secret.Data, annotations: map[string]string{}}
	for _, part := range []struct {
		name string
		into **key
	}{{CurrentKey, &s.current}, {NextKey, &s.next}, {PreviousKey, &s.previous}} {
		data := secret.Data[part.name]
		if len(data) == 0 && part.name != CurrentKey {
			continue
		}
		k, err := parseKey(data, part.name == PreviousKey)
		if err != nil {
			return nil, fmt.Errorf("Secret %s: data key %q: %w", SecretName, part.name, err) //nolint:staticcheck // Secret is a Kubernetes kind
		}
		*part.into = k
	}
	for name, into := range map[string]*time.Time{AnnotationChanged: &s.changed, AnnotationPublished: &s.published} {
		text, there := secret.Annotations[name]
		if !there {
			continue
		}
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, fmt.Errorf("Secret %s: annotation %s: want a time such as 2006-01-02T15:04:05Z", SecretName, name) //nolint:staticcheck // as above
		}
		*into = at
		s.annotations[name] = text
	}
	return s, nil
}

// errKey never repeats what was read, which may be most of a key.
var errKey = fmt.Errorf("want an RSA key of %d to %d bits in PEM, of the previous one its public part", minBits, maxBits)

func parseKey(data []byte, public bool) (*key, error) {
	if len(data) > maxPEM {
		return nil, errKey
	}
	k := &key{}
	if public {
		if all, err := keyutil.ParsePublicKeysPEM(data); err == nil {
			k.public, _ = all[0].(*rsa.PublicKey)
		}
	} else if private, err := keyutil.ParsePrivateKeyPEM(data); err == nil {
		if k.private, _ = private.(*rsa.PrivateKey); k.private != nil {
			k.public = &k.private.PublicKey
		}
	}
	if k.public == nil || k.public.N.BitLen() < minBits || k.public.N.BitLen() > maxBits {
		return nil, errKey
	}
	var err error
	k.id, err = thumbprint(k.public)
	return k, err
}

func thumbprint(public *rsa.PublicKey) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: public}).Thumbprint(crypto.SHA256)
	return base64.RawURLEncoding.EncodeToString(sum), err
}

// newKey makes a private key.
func newKey() ([]byte, error) {
	private, err := rsa.GenerateKey(rand.Reader, newBits)
	if err != nil {
		return nil, err
	}
	return keyutil.MarshalPrivateKeyToPEM(private)
}

// publicPEM is what is kept of a key that does not sign any more.
func (k *key) publicPEM() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.public)
	return pem.EncodeToMemory(&pem.Block{Type: keyutil.PublicKeyBlockType, Bytes: der}), err
}

// newSecret is the first Secret, with a new key.
func newSecret() (*corev1.Secret, error) {
	current, err := newKey()
	if err != nil {
		return nil, err
	}
	return secretOf(map[string][]byte{CurrentKey: current}, nil), nil
}

func secretOf(data map[string][]byte, annotations map[string]string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: SecretName, Annotations: annotations}, Data: data}
}

// keepPrevious is how long a key stays published that does not sign any more: replicas learn of
// its end in moments, or in minutes where their watch was broken, and then its last tokens live on.
const keepPrevious = 15 * time.Minute

// keys are those that belong into the documents.
func (s *set) keys(now time.Time) []*key {
	keys := []*key{s.current}
	if s.next != nil {
		keys = append(keys, s.next)
	}
	if s.previous != nil && now.Before(s.changed.Add(keepPrevious)) {
		keys = append(keys, s.previous)
	}
	return keys
}
