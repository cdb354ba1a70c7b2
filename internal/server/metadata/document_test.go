package metadata

import (
	"encoding/json"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/role"
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

// iam/info has exactly EC2's fields, and says the same of a pod whenever it is asked.
func TestInfo(t *testing.T) {
	created := time.Date(2026, 11, 23, 9, 8, 7, 654321, time.FixedZone("", 3600))
	info := func(arn string) map[string]string {
		t.Helper()
		var fields map[string]string
		document := infoDocument(identity.Caller{Pod: &identity.Pod{Created: created.Unix()}, Role: &role.Role{ARN: arn}})
		if err := json.Unmarshal(document, &fields); err != nil {
			t.Fatal(err)
		}
		return fields
	}
	got := info("arn:aws-cn:iam::123456789012:role/team/role/app")
	id := got["InstanceProfileId"]
	want := map[string]string{
		"Code": "Success", "LastUpdated": "2026-11-23T08:08:07Z",
		"InstanceProfileArn": "arn:aws-cn:iam::123456789012:instance-profile/team/role/app", "InstanceProfileId": id,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || !regexp.MustCompile(`^AIPA[A-Z2-7]{17}$`).MatchString(id) {
		t.Errorf("%v", got)
	}
	if again := info("arn:aws-cn:iam::123456789012:role/team/role/app"); again["InstanceProfileId"] != id {
		t.Errorf("another ID: %v", again)
	}
	if other := info("arn:aws:iam::123456789012:role/team/role/app"); other["InstanceProfileId"] == id {
		t.Errorf("the same ID: %v", other)
	}
}
