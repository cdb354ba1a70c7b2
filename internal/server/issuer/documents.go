package issuer

import (
	"encoding/json"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Paths of the documents below the issuer's URL.
const (
	PathConfiguration = ".well-known/openid-configuration"
	PathKeys          = "keys.json"
)

// configuration is the discovery document, with all that IAM asks of one,
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc.html
type configuration struct {
	Issuer        string   `json:"issuer"`
	Keys          string   `json:"jwks_uri"`
	Authorization string   `json:"authorization_endpoint"`
	ResponseTypes []string `json:"response_types_supported"`
	SubjectTypes  []string `json:"subject_types_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	Claims        []string `json:"claims_supported"`
}

// document is one of the two, to be served at Path below the issuer's URL.
type document struct {
	Path    string
	Content []byte
}

// documents are the discovery document and the keys, as they have to be published at that time.
func documents(issuerURL string, keys *set, now time.Time) ([]document, error) {
	discovery := configuration{
		Issuer: issuerURL, Keys: issuerURL + "/" + PathKeys,
		// There is nobody to be asked for a token. Kubernetes' own issuer says so in these words.
		Authorization: "urn:kubernetes:programmatic_authorization",
		ResponseTypes: []string{"id_token"}, SubjectTypes: []string{"public"}, Algorithms: []string{string(jose.RS256)},
		Claims: []string{"iss", "sub", "aud", "exp", "iat", "nbf", "jti"},
	}
	var published jose.JSONWebKeySet
	for _, k := range keys.keys(now) {
		published.Keys = append(published.Keys, jose.JSONWebKey{Key: k.public, KeyID: k.id, Algorithm: string(jose.RS256), Use: "sig"})
	}
	var all []document
	for _, d := range []struct {
		path    string
		content any
	}{{PathConfiguration, discovery}, {PathKeys, published}} {
		content, err := json.MarshalIndent(d.content, "", "  ")
		if err != nil {
			return nil, err
		}
		all = append(all, document{d.path, append(content, '\n')})
	}
	return all, nil
}
