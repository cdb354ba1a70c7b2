package podtoken

import (
	"crypto/rand"
	"crypto/sha256"
	"math"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/identity"
)

// mostRemembered is for the pods of a large cluster, each with its present token and the one
// before; 230 bytes for each.
const mostRemembered = 1 << 17

// remembered are tokens that were verified, by a keyed hash of the whole of them: a token is
// not in memory, and nobody can look for one with the same hash.
type remembered struct {
	key [sha256.Size]byte

	mu     sync.RWMutex
	tokens map[digest]entry
}

// digest is as much of a hash as 2^17 tokens need to be told apart from every other one.
type digest [16]byte

// entry is an identity.Token in little memory: its strings are parts of one, and none of the
// token's own text.
type entry struct {
	strings string
	// ends are where in strings namespace, pod, its UID and ServiceAccount end.
	ends            [4]uint16
	issued, expires int64
}

func newRemembered() *remembered {
	r := &remembered{tokens: map[digest]entry{}}
	_, _ = rand.Read(r.key[:]) // never fails
	return r
}

// hash is of key and token. That the key comes first would let somebody who knows a hash go on
// with a longer text, but nobody does, and half of it is cut off.
func (r *remembered) hash(token string) digest {
	var buffer [sha256.Size + 4<<10]byte
	sum := sha256.Sum256(append(append(buffer[:0], r.key[:]...), token...))
	return digest(sum[:])
}

func (r *remembered) get(hash digest, now time.Time) (identity.Token, bool) {
	r.mu.RLock()
	e, ok := r.tokens[hash]
	r.mu.RUnlock()
	if !ok || now.Unix() >= e.expires {
		return identity.Token{}, false
	}
	return e.token(), true
}

// put remembers a token until it expires, in the place of others if there are too many:
// those have to be verified again.
func (r *remembered) put(hash digest, token identity.Token, expires, now time.Time) {
	e, ok := newEntry(token, expires)
	if !ok || !expires.After(now) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.tokens) >= mostRemembered {
		// An eighth, so that it is seldom done.
		for some := range r.tokens {
			if delete(r.tokens, some); len(r.tokens) <= mostRemembered-mostRemembered/8 {
				break
			}
		}
	}
	r.tokens[hash] = e
}

// expire forgets what has expired.
func (r *remembered) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for hash, e := range r.tokens {
		if e.expires <= now.Unix() {
			delete(r.tokens, hash)
		}
	}
}

func (r *remembered) len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.tokens)
}

// newEntry reports false for a token with longer names than there are.
func newEntry(t identity.Token, expires time.Time) (entry, bool) {
	e := entry{issued: t.Issued, expires: expires.Unix()}
	var all strings.Builder
	all.Grow(len(t.Namespace) + len(t.Pod) + len(t.PodUID) + len(t.ServiceAccount) + len(t.ServiceAccountUID))
	for i, part := range [...]string{t.Namespace, t.Pod, string(t.PodUID), t.ServiceAccount} {
		all.WriteString(part)
		e.ends[i] = uint16(min(all.Len(), math.MaxUint16))
	}
	all.WriteString(string(t.ServiceAccountUID))
	e.strings = all.String()
	return e, len(e.strings) <= math.MaxUint16
}

func (e entry) token() identity.Token {
	return identity.Token{
		Namespace: e.strings[:e.ends[0]], Pod: e.strings[e.ends[0]:e.ends[1]], PodUID: types.UID(e.strings[e.ends[1]:e.ends[2]]),
		ServiceAccount: e.strings[e.ends[2]:e.ends[3]], ServiceAccountUID: types.UID(e.strings[e.ends[3]:]), Issued: e.issued,
	}
}
