// Package imdstoken makes and verifies IMDSv2 session tokens. It owns their form
// and the key that all replicas share through a Secret. It does not know HTTP.
package imdstoken

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"net/netip"
	"sync"
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

func verify(signers []*signer, token string, caller netip.Addr, now time.Time) bool {
	if len(token) != encoding.EncodedLen(tokenBytes) {
		return false
	}
	raw, err := encoding.DecodeString(token)
	// The length again, because line breaks decode to nothing.
	if err != nil || len(raw) != tokenBytes || raw[0] != version || now.UnixMilli() >= int64(binary.BigEndian.Uint64(raw[1:])) {
		return false
	}
	for _, s := range signers {
		if hmac.Equal(raw[headLength:], s.sign(raw[:headLength], caller)) {
			return true
		}
	}
	return false
}
