package podtoken

import (
	"crypto/rand"
	"crypto/sha256"
	"strings"
	"sync"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/identity"
)

// mostRemembered is for the pods of a large cluster, each with its present token and the one
// before; 280 bytes for each.
const mostRemembered = 1 << 17

// remembered are tokens that were verified, by a keyed hash of the whole of them: a token is
// not in memory, and nobody can look for one with the same hash.
type remembered struct {
	key [sha256.Size]byte

	mu     sync.RWMutex
	tokens map[[sha256.Size]byte]entry
}

type entry struct {
	token   identity.Token
	expires int64
}

func newRemembered() *remembered {
	r := &remembered{tokens: map[[sha256.Size]byte]entry{}}
	_, _ = rand.Read(r.key[:]) // never fails
	return r
}

// hash is of key and token. The key comes first and the token's length is not hidden: what
// follows from that, a hash of a longer text, is of no use without the sum.
func (r *remembered) hash(token string) [sha256.Size]byte {
	var buffer [sha256.Size + 4<<10]byte
	return sha256.Sum256(append(append(buffer[:0], r.key[:]...), token...))
}

func (r *remembered) get(hash [sha256.Size]byte, now time.Time) (identity.Token, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e, ok := r.tokens[hash]
	return e.token, ok && now.Unix() < e.expires
}

// put remembers a token until it expires, in the place of others if there are too many:
// those have to be verified again.
func (r *remembered) put(hash [sha256.Size]byte, token identity.Token, expires, now time.Time) {
	if !expires.After(now) {
		return
	}
	token = compact(token)
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
	r.tokens[hash] = entry{token, expires.Unix()}
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

// compact lets the strings of a token be parts of one, which is a fifth of the memory's
// allocations, and none of the token's own text.
func compact(t identity.Token) identity.Token {
	parts := []*string{&t.Namespace, &t.Pod, (*string)(&t.PodUID), &t.ServiceAccount, (*string)(&t.ServiceAccountUID)}
	var all strings.Builder
	for _, p := range parts {
		all.WriteString(*p)
	}
	rest := strings.Clone(all.String())
	for _, p := range parts {
		*p, rest = rest[:len(*p)], rest[len(*p):]
	}
	return t
}
