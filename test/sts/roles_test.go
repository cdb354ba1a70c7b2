package sts

import (
	"net/http"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// An annotated ServiceAccount is enough for STS to be asked; its first pod needs no
// further attempt, nor do all others.
func TestPrefetchBeforeAnyPod(t *testing.T) {
	s := start(t)
	namespace, arn := newNamespace(t, "prefetch"), env.NewRole()
	createAccount(t, namespace, "app", annotations(arn))
	waitAttempt(t, arn)
	keys := map[string]bool{}
	for _, name := range []string{"one", "two", "three"} {
		status, d, body := get(t, s, createPod(t, namespace, name, "app"), arn)
		if status != http.StatusOK || d.session(t).RoleARN != arn {
			t.Fatalf("%d %s", status, body)
		}
		keys[d.AccessKeyId] = true
	}
	if len(keys) != 1 || len(attemptsFor(arn)) != 1 {
		t.Errorf("%d different credentials by %d attempts", len(keys), len(attemptsFor(arn)))
	}
}

func TestRolesOfOtherAccountsAndPaths(t *testing.T) {
	s := start(t)
	namespace := newNamespace(t, "accounts")
	for name, arn := range map[string]string{
		"one": named(111122223333, "same-name"), "other": named(444455556666, "same-name"), "path": named(444455556666, "team/x/same-name"),
	} {
		createAccount(t, namespace, name, annotations(arn))
		from := createPod(t, namespace, name, name)
		if status, list := s.Get(t, from, rolesPath); status != http.StatusOK || list != "same-name" {
			t.Errorf("%s: %d %q", name, status, list)
		}
		status, d, body := get(t, s, from, arn)
		if status != http.StatusOK || d.session(t).RoleARN != arn {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

func TestExternalID(t *testing.T) {
	s := start(t)
	namespace := newNamespace(t, "external-id")
	required := func(r *fakests.Role) { r.Trust.ExternalID = "the-right:one/2" }
	for _, tc := range []struct {
		name     string
		trust    []func(*fakests.Role)
		annotate []string
		served   bool
		sent     string
	}{
		{"right", []func(*fakests.Role){required}, []string{role.AnnotationExternalID, "the-right:one/2"}, true, "the-right:one/2"},
		{"wrong", []func(*fakests.Role){required}, []string{role.AnnotationExternalID, "another"}, false, "another"},
		{"empty", []func(*fakests.Role){required}, []string{role.AnnotationExternalID, ""}, false, ""},
		{"absent", []func(*fakests.Role){required}, nil, false, ""},
		{"not-required", nil, []string{role.AnnotationExternalID, "given"}, true, "given"},
		{"empty-not-required", nil, []string{role.AnnotationExternalID, ""}, true, ""},
		{"absent-not-required", nil, nil, true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			arn := env.NewRole(tc.trust...)
			createAccount(t, namespace, tc.name, annotations(arn, tc.annotate...))
			status, d, body := get(t, s, createPod(t, namespace, tc.name, tc.name), arn)
			if status != http.StatusOK || (d.Code == "Success") != tc.served {
				t.Errorf("%d %s", status, body)
			}
			// An empty one is none: STS refuses an empty parameter.
			sent := attemptsFor(arn)[0].ExternalID
			if (sent != nil) != (tc.sent != "") || (sent != nil && *sent != tc.sent) {
				t.Errorf("sent %v, want %q", sent, tc.sent)
			}
		})
	}
}

// namespace@name up to 64 characters, and cut with a hash over that: STS takes all of
// them, trust policies still match the namespace, and two ServiceAccounts have two names.
func TestSessionNames(t *testing.T) {
	s := start(t)
	namespace := newNamespace(t, "session-names")
	arn := env.NewRole(func(r *fakests.Role) { r.Trust.SessionNames = []string{namespace + "@*"} })
	seen := map[string]string{}
	for _, name := range []string{
		strings.Repeat("a", 63-len(namespace)),
		strings.Repeat("a", 64-len(namespace)),
		strings.Repeat("a", 65-len(namespace)) + "b",
		strings.Repeat("a", 65-len(namespace)) + "c",
		strings.Repeat("long.", 50) + "end",
	} {
		createAccount(t, namespace, name, annotations(arn))
		status, d, body := get(t, s, createPod(t, namespace, "pod-"+string(rune('a'+len(seen))), name), arn)
		if status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		session := d.session(t).SessionName
		if whole := namespace + "@" + name; len(whole) <= 64 && session != whole || !strings.HasPrefix(session, namespace+"@") || len(session) > 64 {
			t.Errorf("%s has the session name %s", name, session)
		}
		if other := seen[session]; other != "" {
			t.Errorf("%s and %s share the session name %s", name, other, session)
		}
		seen[session] = name
	}
}

// Whoever annotates a ServiceAccount of theirs with the role of another namespace gets
// nothing, if the trust policy of the role names the namespace by sts:RoleSessionName.
func TestTheftIsRefused(t *testing.T) {
	s := start(t)
	arn := env.NewRole(func(r *fakests.Role) { r.Trust.SessionNames = []string{"victim@*"} })
	for namespace, served := range map[string]bool{"victim": true, "thief": false, "victim-of-nobody": false} {
		createAccount(t, newNamespace(t, namespace), "app", annotations(arn))
		status, d, body := get(t, s, createPod(t, namespace, "app", "app"), arn)
		if status != http.StatusOK || (d.Code == "Success") != served {
			t.Errorf("%s: %d %s", namespace, status, body)
		}
		if served {
			continue
		}
		if d.AccessKeyId != "" || d.SecretAccessKey != "" || d.Token != "" {
			t.Errorf("%s got credentials", namespace)
		}
		for _, want := range []string{arn, "app", namespace + "@app", "AccessDenied"} {
			if !strings.Contains(d.Message, want) {
				t.Errorf("%s: the message does not say %q: %s", namespace, want, d.Message)
			}
		}
	}
}

// A session longer than the role or the server's own identity allows is a denial that
// says so.
func TestSessionDuration(t *testing.T) {
	s := start(t)
	namespace := newNamespace(t, "duration")
	short := env.NewRole(func(r *fakests.Role) { r.MaxSessionDuration = 3600 })
	for seconds, code := range map[string]string{"900": "Success", "3600": "Success", "3601": "AssumeRoleUnauthorizedAccess"} {
		createAccount(t, namespace, "app"+seconds, annotations(short, role.AnnotationDuration, seconds))
		status, d, body := get(t, s, createPod(t, namespace, "app"+seconds, "app"+seconds), short)
		if status != http.StatusOK || d.Code != code || code != "Success" && !strings.Contains(d.Message, "MaxSessionDuration") {
			t.Errorf("%s: %d %s", seconds, status, body)
		}
	}
	asked := map[string]bool{}
	for _, a := range attemptsFor(short) {
		asked[a.Duration] = true
	}
	if len(asked) != 3 {
		t.Errorf("asked for %v", asked)
	}
}
