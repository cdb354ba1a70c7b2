package metadata

import (
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
)

const (
	// headerChallenge is what somebody asks to be signed, and headerProof the answer: public
	// key and signature, each in base64, a blank between. See package ip2service, which asks.
	headerChallenge, headerProof = "X-Iam4kube-Challenge", "X-Iam4kube-Proof"
	// proofPrefix keeps signatures from meaning anything else.
	proofPrefix = "iam4kube-server\n"
	// maxChallenge in bytes.
	maxChallenge = 64
)

// newProofKey is this process's, for as long as it lives: whoever has seen its public key can
// tell this server from another program that has got its address.
func newProofKey() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return key
}

// prove signs what the request asks to be signed, if it does.
func (s *Server) prove(header, request http.Header) {
	challenge := request.Get(headerChallenge)
	if challenge == "" || len(challenge) > maxChallenge {
		return
	}
	public, _ := s.proofKey.Public().(ed25519.PublicKey) // it is one
	signature := ed25519.Sign(s.proofKey, []byte(proofPrefix+challenge))
	header[headerProof] = []string{base64.StdEncoding.EncodeToString(public) + " " + base64.StdEncoding.EncodeToString(signature)}
}
