// Package imdstoken makes and verifies IMDSv2 session tokens. It owns their form
// and the key that all replicas share through a Secret. It does not know HTTP.
package imdstoken

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"hash/maphash"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A token is the base64url form of
//
//	version (1 byte) | expiry, Unix milliseconds (8 bytes, big endian) | HMAC-SHA256 (32 bytes)
//
// with the HMAC taken over version, expiry and the caller's address. So any
// replica with the key can verify it, and no replica has to remember it. Whole
// seconds would cut up to all of the shortest life, one second.
const (
	version    = 1
	headLength = 1 + 8
	tokenBytes = headLength + sha256.Size
)

var encoding = base64.RawURLEncoding.Strict()

// signer signs with a key of the Secret.
type signer struct {
	key []byte
	// macs are HMACs that have taken the key in, which is more work than a token.
	macs sync.Pool
}

func newSigner(key []byte) *signer {
	return &signer{key: key, macs: sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}}
}

func (s *signer) sign(head []byte, caller netip.Addr) []byte {
	mac := s.macs.Get().(hash.Hash) //nolint:errcheck // the pool holds nothing else
	defer s.macs.Put(mac)
	mac.Reset()
	mac.Write(head)
	address := caller.As16() // fixed length, so that nothing can move between the parts
	mac.Write(address[:])
	return mac.Sum(nil)
}

func newToken(s *signer, caller netip.Addr, expiry time.Time) string {
	raw := make([]byte, headLength, tokenBytes)
	raw[0] = version
	binary.BigEndian.PutUint64(raw[1:], uint64(expiry.UnixMilli()))
	raw = append(raw, s.sign(raw, caller)...)
	return encoding.EncodeToString(raw)
}

// keyring is the keys of a Secret, with the tokens that were verified by them.
type keyring struct {
	// signers have the current key and then the previous one.
	signers []*signer
	seed    maphash.Seed
	// verified are tokens that clients will send again, as they do for hours. Which are kept
	// is left to chance: those that share a slot push each other out, and are verified anew.
	verified [verifiedSlots]atomic.Pointer[verified]
}

// verifiedSlots bounds the memory for verified tokens to 0.6 MB.
const verifiedSlots = 4096

// verified is a token that was made for the caller.
type verified struct {
	token  string
	caller netip.Addr
	// expiry is in milliseconds of Unix time.
	expiry int64
}

func newKeyring(signers []*signer) *keyring {
	return &keyring{signers: signers, seed: maphash.MakeSeed()}
}

func (k *keyring) verify(token string, caller netip.Addr, now time.Time) bool {
	if len(token) != encoding.EncodedLen(tokenBytes) {
		return false
	}
	slot := &k.verified[maphash.String(k.seed, token)%verifiedSlots]
	// How long the comparison takes tells nobody anything but the caller whose token it is.
	if v := slot.Load(); v != nil && v.caller == caller && v.token == token {
		return now.UnixMilli() < v.expiry
	}
	raw, err := encoding.DecodeString(token)
	// The length again, because line breaks decode to nothing.
	if err != nil || len(raw) != tokenBytes || raw[0] != version {
		return false
	}
	expiry := int64(binary.BigEndian.Uint64(raw[1:]))
	if now.UnixMilli() >= expiry {
		return false
	}
	for _, s := range k.signers {
		if hmac.Equal(raw[headLength:], s.sign(raw[:headLength], caller)) {
			slot.Store(&verified{strings.Clone(token), caller, expiry})
			return true
		}
	}
	return false
}
