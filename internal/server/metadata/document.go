package metadata

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"strings"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/identity"
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

// infoDocument is the JSON of EC2's metadata service for the instance profile of a caller
// with a role. A pod has none: its name is the role's, its ID is one that the role's ARN
// always gives, and it was last updated when the pod came.
func infoDocument(c identity.Caller) []byte {
	const idLength = 17 // of IAM's identifiers, behind a prefix for the kind of thing
	hash := sha256.Sum256([]byte(c.Role.ARN))
	document, err := json.MarshalIndent(struct {
		Code, LastUpdated string
		ARN               string `json:"InstanceProfileArn"`
		ID                string `json:"InstanceProfileId"`
	}{
		"Success", time.Unix(c.Pod.Created, 0).UTC().Format(expirationFormat),
		strings.Replace(c.Role.ARN, ":role/", ":instance-profile/", 1),
		"AIPA" + base32.StdEncoding.EncodeToString(hash[:])[:idLength],
	}, "", "  ")
	if err != nil {
		panic(err) // strings always marshal
	}
	return document
}
