package credentials

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// identityRole is the server's own role where its identity comes from STS.
const identityRole = "arn:aws:iam::999988887777:role/iam4kube"

const webToken = "web-identity-token-never-to-be-seen"

// webIdentity is a server that gets its identity by AssumeRoleWithWebIdentity, as on EKS.
func webIdentity(t *testing.T) setup {
	t.Helper()
	return setup{
		env: map[string]string{
			"AWS_ROLE_ARN": identityRole, "AWS_ROLE_SESSION_NAME": "server",
			"AWS_WEB_IDENTITY_TOKEN_FILE": write(t, "token", webToken),
		},
		prepare: func(f *fakests.Fake) {
			f.AddWebIdentity(webToken, fakests.WebIdentity{
				Provider: "arn:aws:iam::999988887777:oidc-provider/oidc.invalid", Subject: "system:serviceaccount:iam4kube:iam4kube-server",
				Audience: "sts.amazonaws.com", Expires: time.Now().Add(24 * 365 * time.Hour),
			})
			f.AddRole(fakests.Role{ARN: identityRole, Trust: fakests.Trust{WebIdentities: []string{"system:serviceaccount:iam4kube:iam4kube-server"}}})
		},
	}
}

// sourceProfile is a server that assumes its own role first, from a profile.
func sourceProfile(t *testing.T) setup {
	t.Helper()
	return setup{
		env: map[string]string{
			"AWS_PROFILE": "iam4kube",
			"AWS_CONFIG_FILE": write(t, "config", "[profile iam4kube]\nrole_arn = "+identityRole+"\nsource_profile = base\nrole_session_name = server\n"+
				"[profile base]\naws_access_key_id = "+user.AccessKeyID+"\naws_secret_access_key = "+user.SecretAccessKey+"\n"),
		},
		prepare: func(f *fakests.Fake) {
			f.AddRole(fakests.Role{ARN: identityRole, Trust: fakests.Trust{Principals: []string{user.ARN}}})
		},
	}
}

func write(t *testing.T, name, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// identities are the ways by which the server's own credentials come from STS.
var identities = map[string]func(*testing.T) setup{"web identity": webIdentity, "source profile": sourceProfile}

// wantMany wants that many roles and returns them.
func (s *simulation) wantMany(n int) (roles []*role.Role) {
	for i := range n {
		roles = append(roles, s.good(fmt.Sprint("ns", i%5), fmt.Sprint("app", i)))
	}
	s.want(roles...)
	return roles
}

// The attempts for the server's own credentials are below the limit too, also when they
// are slow and everything waits for them: at the start, and whenever they have expired.
func TestOwnIdentityIsCountedByTheLimiter(t *testing.T) {
	for name, how := range identities {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := simulate(t, how(t))
				s.fake.SetFault(identityRole, fakests.Fault{Delay: 5 * time.Second})
				roles := s.wantMany(100)
				// The server's own attempt is one more, and everything waits for it.
				if took, most := s.filled(), share(101)+5*time.Second; took > most {
					t.Errorf("filled after %v, want %v", took, most)
				}
				everySecond(3*time.Hour, func() {
					for _, r := range roles {
						if issued, failure := s.cache.Get(r); issued == nil || time.Until(issued.Expiration) < 20*time.Minute {
							t.Fatalf("%v, %v after %v", issued, failure, time.Since(s.start))
						}
					}
				})
				own := 0
				for _, a := range s.fake.Attempts() {
					if a.RoleARN == identityRole {
						own++
					}
				}
				if own < 3 || own > 5*3 {
					t.Errorf("%d attempts for the server's own credentials in three hours", own)
				}
			})
		})
	}
}

// Trouble with the server's own identity passes as soon as its reason does.
func TestOwnIdentityRecovers(t *testing.T) {
	for name, how := range identities {
		for _, effect := range []fakests.Effect{fakests.Hang, fakests.Throttling, fakests.ServiceUnavailable, fakests.AccessDenied, fakests.NotXML} {
			t.Run(name+" "+string(effect), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := simulate(t, how(t))
					s.fake.SetFault(identityRole, fakests.Fault{Effect: effect})
					roles := s.wantMany(5)
					advance(10 * time.Minute)
					_, failure := s.cache.Get(roles[0])
					if failure == nil || !strings.Contains(failure.Error(), "the server has no AWS credentials of its own") {
						t.Fatalf("%v", failure)
					}
					if s.metric("iam4kube_sts_identity_refused") != 1 {
						t.Error("the metric does not say so")
					}
					s.fake.SetFault(identityRole)
					// An attempt of the SDK for the identity that hangs ends after 10 s, and its
					// retries may too.
					if took := s.served(roles[0], 2*time.Minute); took > 45*time.Second {
						t.Errorf("took %v", took)
					} else {
						t.Logf("took %v", took)
					}
				})
			})
		}
	}
}

// While the server has no identity every role learns why, and soon, without as many
// requests for the identity.
func TestMissingIdentityIsToldToEveryRole(t *testing.T) {
	for effect, most := range map[fakests.Effect]time.Duration{
		fakests.AccessDenied: 25 * time.Second,
		// 10 s for one time-out, and then the roles of 5 s.
		fakests.Hang: 70 * time.Second,
	} {
		t.Run(string(effect), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := simulate(t, webIdentity(t))
				s.fake.SetFault(identityRole, fakests.Fault{Effect: effect})
				roles := s.wantMany(200)
				for _, r := range roles {
					s.tried(r)
				}
				if took := time.Since(s.start); took > most {
					t.Errorf("told after %v", took)
				}
				for _, r := range roles {
					if _, failure := s.cache.Get(r); failure == nil || failure.Kind != sts.Identity || failure.Cause == nil {
						t.Fatalf("%v", failure)
					}
				}
				if n := len(s.fake.Attempts()); n > 12 {
					t.Errorf("%d attempts for the identity", n)
				}
			})
		})
	}
}

// --region is for the server's own identity, too.
func TestFallbackRegion(t *testing.T) {
	for name, how := range identities {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				how := how(t)
				how.env["AWS_REGION"], how.region = "", "us-east-1"
				s := simulate(t, how)
				s.served(s.wantMany(1)[0], time.Second)
			})
		})
	}
}

// Credentials of the server that STS does not accept any more are not used until they
// expire.
func TestRevokedIdentityIsRenewed(t *testing.T) {
	for name, how := range identities {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := simulate(t, how(t))
				r := s.wantMany(1)[0]
				s.served(r, time.Second)
				s.fake.RemoveKey(s.attemptsFor(r)[0].AccessKeyID)
				another := s.good("ns", "another")
				s.want(another)
				if took := s.served(another, time.Minute); took > 2*time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// STS repeats the request, session token and all, in some messages about the server's own
// credentials. Neither a pod nor the log gets to see that.
func TestMessagesOfSTSLeakNoToken(t *testing.T) {
	config := write(t, "config", "")
	how := setup{
		env: map[string]string{"AWS_PROFILE": "iam4kube", "AWS_CONFIG_FILE": config},
		prepare: func(f *fakests.Fake) {
			base := f.IssueSession("arn:aws:iam::999988887777:role/base", "server", time.Hour)
			profile := "[profile iam4kube]\nrole_arn = " + identityRole + "\nsource_profile = base\n" +
				"[profile base]\naws_access_key_id = " + base.AccessKeyID + "\naws_secret_access_key = not-its-own\naws_session_token = " + base.SessionToken + "\n"
			if err := os.WriteFile(config, []byte(profile), 0o600); err != nil {
				panic(err)
			}
		},
	}
	// For the role itself, and for the server's own role.
	for _, name := range []string{"base", "iam4kube"} {
		t.Run(name, func(t *testing.T) {
			how.env["AWS_PROFILE"] = name
			synctest.Test(t, func(t *testing.T) {
				s := simulate(t, how)
				r := s.wantMany(1)[0]
				s.tried(r)
				_, failure := s.cache.Get(r)
				if failure == nil || failure.Kind != sts.Identity {
					t.Fatalf("%v", failure)
				}
				if attempts := s.fake.Attempts(); attempts[0].Outcome != "SignatureDoesNotMatch" {
					t.Fatalf("STS said %v", attempts)
				}
				cause := ""
				if failure.Cause != nil {
					cause = failure.Cause.Error()
				}
				if text := failure.Error() + cause; !strings.Contains(text, "SignatureDoesNotMatch") {
					t.Errorf("says only %q", text)
				}
				checkNoSecret(t, s.fake, failure, cause, s.cache.Dump())
			})
		})
	}
}

// checkNoSecret searches every form of the values for what the fake STS has issued.
func checkNoSecret(t *testing.T, fake *fakests.Fake, values ...any) {
	t.Helper()
	for _, value := range values {
		text := fmt.Sprintf("%v %+v %#v", value, value, value)
		if encoded, err := json.Marshal(value); err == nil {
			text += string(encoded)
		}
		for _, secret := range fake.Secrets() {
			if strings.Contains(text, secret) {
				t.Errorf("a secret is in %s", text)
			}
		}
	}
}
