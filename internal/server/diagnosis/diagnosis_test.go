package diagnosis

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

var subject = Subject{
	Address: netip.MustParseAddr("10.0.0.1"), Pod: "shop/orders-0", ServiceAccount: "orders",
	Role: &role.Role{ARN: "arn:aws:iam::123456789012:role/orders", SessionName: "shop@orders", ExternalID: "7Qx", Duration: time.Hour},
	Why:  "STS cannot be reached", Retry: time.Date(2026, 11, 30, 8, 0, 1, 5e8, time.UTC),
}

// Each piece is named in its text with whom it is about, and has a text that differs from the
// others'. Who knows no pod tells none.
func TestEveryPieceSaysWhatIsMissing(t *testing.T) {
	reasons := map[Piece]Reason{
		SinglePod: AddressAmbiguous, ServiceAccount: AccountMissing, RoleAnnotation: RoleMissing, Credentials: CredentialsUnavailable,
	}
	for _, piece := range Pieces {
		d := subject.Missing(piece)
		if d.Missing != piece || d.Refusal != "" || d.Reason != reasons[piece] {
			t.Errorf("%s: %+v", piece, d)
		}
		if !strings.HasPrefix(d.Text, "missing "+string(piece)+": ") || !strings.Contains(d.Text, "source address 10.0.0.1") {
			t.Errorf("%s: %s", piece, d.Text)
		}
		if hasPod := strings.Contains(d.Text, "pod shop/orders-0"); hasPod != (piece != TokenKeys && piece != Pod && piece != SinglePod) {
			t.Errorf("%s: %s", piece, d.Text)
		}
	}
}

func TestEveryRefusalSaysWhy(t *testing.T) {
	for refusal, want := range map[Refusal]struct {
		reason Reason
		says   []string
	}{
		Stale:         {"", []string{"source address 10.0.0.1", "--max-staleness", "as soon as"}},
		NodeAddress:   {"", []string{"source address 10.0.0.1 is a node's", "hostNetwork", "masqueraded"}},
		BadAnnotation: {AnnotationInvalid, []string{"ServiceAccount orders of pod shop/orders-0", subject.Why, "Correct the annotation"}},
		NotAllowed:    {RoleNotAllowed, []string{"not-allowed: ", "ServiceAccount orders", subject.Role.ARN, subject.Why}},
		Denied:        {RoleDenied, []string{subject.Role.ARN, "orders", "shop/orders-0", "(session name shop@orders, external ID 7Qx, 3600 s)", subject.Why, "trust policy", "next attempt is at 2026-11-30T08:00:01Z"}},
	} {
		d := subject.Refused(refusal)
		if d.Refusal != refusal || d.Missing != "" || d.Reason != want.reason {
			t.Errorf("%s: %+v", refusal, d)
		}
		for _, part := range want.says {
			if !strings.Contains(d.Text, part) {
				t.Errorf("%s: %q does not say %q", refusal, d.Text, part)
			}
		}
	}
	for _, text := range []string{subject.Refused(NodeAddress).Text, subject.Refused(BadAnnotation).Text} {
		if strings.Contains(text, subject.Role.ARN) {
			t.Errorf("names a role that nobody got: %s", text)
		}
	}
}

// What was sent as external ID is told, and one that is too long leaves room for the rest.
func TestDenialSaysWhatWasSent(t *testing.T) {
	for id, says := range map[string]string{
		"": "external ID none, ", "7Qx": "external ID 7Qx, ", strings.Repeat("a", 1224): "external ID " + strings.Repeat("a", 128) + "... (1224 bytes), ",
	} {
		s, r := subject, *subject.Role
		r.ExternalID, s.Role = id, &r
		if text := s.Refused(Denied).Text; !strings.Contains(text, says) || len(text) > 800 {
			t.Errorf("%q does not say %q", text, says)
		}
	}
}

// What a token says, and what an address, is told apart.
func TestTextsOfTokens(t *testing.T) {
	s := subject
	s.ByToken = true
	for _, piece := range []Piece{Pod, ServiceAccount} {
		if text := s.Missing(piece).Text; text == subject.Missing(piece).Text || !strings.Contains(text, "shop/orders-0") || !strings.Contains(text, "token") {
			t.Errorf("%s: %s", piece, text)
		}
	}
	for _, refusal := range []Refusal{BadToken, TokenRequired, PodGone, AccountGone, OtherPod} {
		d := s.Refused(refusal)
		if d.Refusal != refusal || !strings.Contains(d.Text, "source address 10.0.0.1") || (d.Reason != "") != (refusal == TokenRequired) {
			t.Errorf("%s: %+v", refusal, d)
		}
		if hasPod := strings.Contains(d.Text, "shop/orders-0"); hasPod == (refusal == BadToken) {
			t.Errorf("%s: %s", refusal, d.Text)
		}
	}
}

// Before the first attempt has ended, there is nothing of STS's to repeat.
func TestNoAttemptYet(t *testing.T) {
	s := subject
	s.Why = ""
	if text := s.Missing(Credentials).Text; !strings.Contains(text, "STS has not answered yet") {
		t.Error(text)
	}
	if text := subject.Missing(Credentials).Text; strings.Contains(text, "not answered yet") || !strings.Contains(text, subject.Why) {
		t.Error(text)
	}
}

// What is told to all pods of a ServiceAccount names none of them.
func TestBadAnnotationOfAllPods(t *testing.T) {
	d := Subject{ServiceAccount: "orders", Why: "wrong"}.Refused(BadAnnotation)
	if want := "ServiceAccount orders gives no IAM role: wrong. Correct the annotation; no restart is needed."; d.Text != want || d.Reason != AnnotationInvalid {
		t.Errorf("%+v", d)
	}
}

// A role that is named where nobody reads it is pointed at.
func TestLookalikeIsNamed(t *testing.T) {
	s := subject
	s.Lookalike = "iam.amazonaws.com/role"
	without, with := subject.Missing(RoleAnnotation), s.Missing(RoleAnnotation)
	if want := without.Text + " There is an annotation iam.amazonaws.com/role, which is not read: the name, on the ServiceAccount, has to be exactly the one above."; with.Text != want {
		t.Errorf("%q", with.Text)
	}
	if strings.Contains(without.Text, "not read") || with.About == without.About {
		t.Errorf("%+v", without)
	}
}

func TestServed(t *testing.T) {
	d := subject.Served()
	if want := "The pod gets credentials of arn:aws:iam::123456789012:role/orders (session name shop@orders)."; d.Text != want || d.Reason != Serving || d.Missing != "" || d.Refusal != "" {
		t.Errorf("%+v", d)
	}
}
