package fakests

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestPublishedSignatures uses requests of AWS's published Signature Version 4
// test suite: what the SDK signs and what we verify could be wrong alike.
func TestPublishedSignatures(t *testing.T) {
	for name, c := range map[string]struct {
		body, signedHeaders, signature string
	}{
		"post-vanilla": {
			"", "host;x-amz-date",
			"5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
		},
		"post-x-www-form-urlencoded": {
			"Param1=value1", "content-type;host;x-amz-date",
			"ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
		},
	} {
		r, err := http.NewRequest(http.MethodPost, "https://example.amazonaws.com/", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		const at = "20150830T123600Z"
		r.Header.Set("X-Amz-Date", at)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		auth, refused := parseAuthorization("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders="+
			c.signedHeaders+", Signature="+c.signature, at)
		if refused != nil {
			t.Fatal(refused.message)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got := auth.sign(auth.stringToSign(auth.canonical(stsRequest(r, body, ""))), "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"); got != c.signature {
			t.Errorf("%s: got %s, want %s", name, got, c.signature)
		}
	}
}
