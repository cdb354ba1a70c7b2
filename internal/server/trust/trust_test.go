package trust

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

const server = "arn:aws:iam::999988887777:role/iam4kube-server"

func orders(t *testing.T, annotations map[string]string, sessions role.Sessions) *role.Role {
	t.Helper()
	all := map[string]string{role.AnnotationARN: "arn:aws-cn:iam::111122223333:role/pods/orders"}
	maps.Copy(all, annotations)
	sessions.Duration = time.Hour
	r, err := role.FromAnnotations("shop", "orders", all, sessions)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func text(t *testing.T, p Policy) string {
	t.Helper()
	text, err := p.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

func TestForRole(t *testing.T) {
	const statement = `{ "Effect": "Allow", "Principal": { "AWS": "` + server + `" }, "Action": "`
	const plain = `{ "Version": "2012-10-17", "Statement": [ ` + statement + `sts:AssumeRole", "Condition": { "StringEquals": { `
	for name, tc := range map[string]struct {
		annotations map[string]string
		sessions    role.Sessions
		want        string
	}{
		"plain": {want: plain + `"sts:RoleSessionName": "shop@orders" } } } ] }`},
		"external ID": {
			annotations: map[string]string{role.AnnotationExternalID: "7Qx-shop"},
			want:        plain + `"sts:ExternalId": "7Qx-shop", "sts:RoleSessionName": "shop@orders" } } } ] }`,
		},
		"all that flags add": {
			sessions: role.Sessions{Tagged: true, Cluster: "east", Tags: []role.Tag{{Key: "team", Value: "a=b"}}, SourceIdentity: true},
			want: plain + `"sts:RoleSessionName": "shop@orders" } } }, ` +
				statement + `sts:TagSession", "Condition": { "StringEquals": { "aws:RequestTag/kubernetes-cluster": "east", "aws:RequestTag/kubernetes-namespace": "shop", "aws:RequestTag/kubernetes-service-account": "orders", "aws:RequestTag/team": "a=b" } } }, ` +
				statement + `sts:SetSourceIdentity", "Condition": { "StringEquals": { "sts:SourceIdentity": "shop@orders" } } } ] }`,
		},
	} {
		if got := text(t, ForRole(orders(t, tc.annotations, tc.sessions), server)); got != tc.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, tc.want)
		}
	}
}

func TestForWebIdentity(t *testing.T) {
	p, err := ForWebIdentity(orders(t, nil, role.Sessions{SourceIdentity: true}), "https://oidc.example.com/east")
	if err != nil {
		t.Fatal(err)
	}
	const statement = `{ "Effect": "Allow", "Principal": { "Federated": "arn:aws-cn:iam::111122223333:oidc-provider/oidc.example.com/east" }, "Action": "`
	const want = `{ "Version": "2012-10-17", "Statement": [ ` + statement + `sts:AssumeRoleWithWebIdentity", "Condition": { "StringEquals": { "oidc.example.com/east:aud": "sts.amazonaws.com", "oidc.example.com/east:sub": "system:serviceaccount:shop:orders" } } }, ` +
		statement + `sts:SetSourceIdentity", "Condition": { "StringEquals": { "sts:SourceIdentity": "shop@orders" } } } ] }`
	if got := text(t, p); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, issuer := range []string{"", "http://a", "https://", "https://a/", "a"} {
		if _, err := ForWebIdentity(orders(t, nil, role.Sessions{}), issuer); err == nil || !strings.Contains(err.Error(), "https://HOST/PATH") {
			t.Errorf("%q: %v", issuer, err)
		}
	}
	if _, err := ForWebIdentity(orders(t, map[string]string{role.AnnotationExternalID: "7Qx"}, role.Sessions{}), "https://a"); err == nil || !strings.Contains(err.Error(), role.AnnotationExternalID) {
		t.Error(err)
	}
}

func TestPrincipal(t *testing.T) {
	for caller, want := range map[string]struct {
		arn       string
		uncertain bool
	}{
		server: {server, false},
		"arn:aws:iam::999988887777:user/path/iam4kube":                   {"arn:aws:iam::999988887777:user/path/iam4kube", false},
		"arn:aws-cn:sts::999988887777:assumed-role/iam4kube-server/i-01": {"arn:aws-cn:iam::999988887777:role/iam4kube-server", true},
		"arn:aws:iam::999988887777:root":                                 {},
		"arn:aws:sts::999988887777:federated-user/x":                     {},
		"arn:aws:iam::999988887777:role/":                                {},
		"iam4kube":                                                       {},
	} {
		arn, uncertain, err := Principal(caller)
		if arn != want.arn || uncertain != want.uncertain || errors.Is(err, ErrNoPrincipal) != (want.arn == "") {
			t.Errorf("%s: %s, %t, %v", caller, arn, uncertain, err)
		}
	}
}
