package metadata

import (
	"bytes"
	"encoding/json"

	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// expirationFormat is the only one that every SDK reads: no fraction, and Z.
const expirationFormat = "2006-01-02T15:04:05Z"

// credentialsDocument is the JSON of EC2's metadata service for an instance role, with
// the secrets in clear text.
func credentialsDocument(c *sts.Credentials) []byte {
	// The fields and their order are those of
	// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html
	document, err := json.MarshalIndent(struct {
		Code, LastUpdated, Type, AccessKeyId, SecretAccessKey, Token, Expiration string
	}{
		"Success", c.Issued.UTC().Format(expirationFormat), "AWS-HMAC",
		c.AccessKeyID, c.SecretAccessKey.Reveal(), c.SessionToken.Reveal(),
		c.Expiration.UTC().Format(expirationFormat),
	}, "", "  ")
	if err != nil {
		panic(err) // strings always marshal
	}
	// Cloned because MarshalIndent returns a slice with room for as much again.
	return bytes.Clone(document)
}
