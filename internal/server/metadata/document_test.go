package metadata

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// The document has exactly EC2's fields, and an expiration that every SDK can read.
func TestDocument(t *testing.T) {
	at := time.Date(2026, 11, 23, 9, 8, 7, 654321, time.FixedZone("", 3600))
	document := credentialsDocument(&sts.Credentials{
		AccessKeyID: "ASIA2222222222222222", SecretAccessKey: `a/+"b`, SessionToken: "token==", Issued: at, Expiration: at.Add(time.Hour),
	})
	var fields map[string]string
	if err := json.Unmarshal(document, &fields); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"Code": "Success", "LastUpdated": "2026-11-23T08:08:07Z", "Type": "AWS-HMAC", "AccessKeyId": "ASIA2222222222222222",
		"SecretAccessKey": `a/+"b`, "Token": "token==", "Expiration": "2026-11-23T09:08:07Z",
	}
	if fmt.Sprint(fields) != fmt.Sprint(want) {
		t.Errorf("%s", document)
	}
}
