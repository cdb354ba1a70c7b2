// Package imdstoken makes and verifies IMDSv2 session tokens. It owns their form
// and the key that all replicas share through a Secret. It does not know HTTP.
package imdstoken

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
	"time"
)

// A token is the base64url form of
//
//	version (1 byte) | expiry, Unix seconds (8 bytes, big endian) | HMAC-SHA256 (32 bytes)
//
// with the HMAC taken over version, expiry and the caller's address. So any
// replica with the key can verify it, and no replica has to remember it.
const (
	version    = 1
	headLength = 1 + 8
	tokenBytes = headLength + sha256.Size
)

var encoding = base64.RawURLEncoding.Strict()

func sign(key, head []byte, caller netip.Addr) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(head)
	address := caller.As16() // fixed length, so that nothing can move between the parts
	mac.Write(address[:])
	return mac.Sum(nil)
}

func newToken(key []byte, caller netip.Addr, expiry time.Time) string {
	raw := make([]byte, headLength, tokenBytes)
	raw[0] = version
	binary.BigEndian.PutUint64(raw[1:], uint64(expiry.Unix()))
	raw = append(raw, sign(key, raw, caller)...)
	return encoding.EncodeToString(raw)
}

func verify(keys [][]byte, token string, caller netip.Addr, now time.Time) bool {
	if len(token) != encoding.EncodedLen(tokenBytes) {
		return false
	}
	raw, err := encoding.DecodeString(token)
	if err != nil || raw[0] != version || now.Unix() >= int64(binary.BigEndian.Uint64(raw[1:])) {
		return false
	}
	for _, key := range keys {
		if hmac.Equal(raw[headLength:], sign(key, raw[:headLength], caller)) {
			return true
		}
	}
	return false
}
