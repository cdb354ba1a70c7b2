package role

import (
	"crypto/sha256"
	"encoding/base32"
)

const (
	// maxSessionName is the limit of STS's RoleSessionName.
	maxSessionName = 64
	// shortHash stands for the rest of a ServiceAccount's name that was cut:
	// 40 bits tell the accounts of one namespace apart.
	shortHash = 8
	// longHash stands for a namespace that was cut. Namespaces do not trust each
	// other, so nobody may be able to search for one with the same hash: 130 bits.
	longHash = 26
)

// SessionName is the RoleSessionName of a ServiceAccount's sessions:
// namespace@name. Trust policies match on it (condition key sts:RoleSessionName),
// and CloudTrail shows it, so it is stable and unique.
//
// If it were longer than STS's 64 characters, the name is cut and ends with a
// hash of namespace@name; the part up to the @ stays whole. A namespace of more
// than 55 characters leaves no room for that and is cut too: the result then has
// no @, so that no pattern of the form other-namespace@* can match it.
func SessionName(namespace, serviceAccount string) string {
	full := namespace + "@" + serviceAccount
	if len(full) <= maxSessionName {
		return full
	}
	hash := hash(full)
	if room := maxSessionName - len(namespace) - 1; room >= shortHash {
		return full[:maxSessionName-shortHash] + hash[:shortHash]
	}
	return namespace[:maxSessionName-longHash-1] + "." + hash[:longHash]
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	const lower = "abcdefghijklmnopqrstuvwxyz234567"
	return base32.NewEncoding(lower).WithPadding(base32.NoPadding).EncodeToString(sum[:])
}
