// Package fakests is a fake AWS Security Token Service that is as strict as
// the real one. It is the only simulated part in the tests of iam4kube.
//
// It speaks the AWS Query protocol over HTTP: AssumeRole,
// AssumeRoleWithWebIdentity and GetCallerIdentity, version 2011-06-15. A
// request passes the same gates, in the same order, as at AWS:
//
//  1. protocol: POST, form encoding, Action and Version      (query.go)
//  2. signature: Signature Version 4 against the known keys   (sigv4.go)
//  3. parameters: lengths, patterns, ranges                   (query.go)
//  4. faults that a test has asked for                        (faults.go)
//  5. token of a web identity: provider, keys, claims         (oidc.go, jwt.go)
//     trust policy of the role                                (trust.go)
//  6. session duration: role chaining, MaxSessionDuration     (assume.go)
//
// A refused request gets AWS's own status, code and message. Faults come after
// the first three gates, so no fault hides a request that AWS would not accept.
//
// In a test:
//
//	fake := fakests.New(fakests.Config{})
//	fake.AddKey(fakests.Key{AccessKeyID: "AKIA…", SecretAccessKey: "…", ARN: "arn:aws:iam::111122223333:user/iam4kube"})
//	fake.AddRole(fakests.Role{ARN: "arn:aws:iam::123456789012:role/reader", Trust: fakests.Trust{
//		Principals: []string{"arn:aws:iam::111122223333:root"}, SessionNames: []string{"default@*"}}})
//	server := fake.Start() // or StartPipe in a testing/synctest bubble
//	defer server.Close()
//	fake.SetFault("", fakests.Fault{Effect: fakests.Throttling, Times: 2})
//
// What it does differently from AWS, always on the strict side: an unknown or
// repeated parameter is refused (AWS ignores it), so that a typing error is
// seen; so is a parameter whose effect is not modelled (inline session policies,
// MFA). A request without an Action gets 400
// (AWS redirects to its home page, which a client could follow out of a test).
// GET, presigned requests and TLS are not offered. A token is valid from its iat and
// nbf on, without an allowance for clocks, and a key that an issuer has published
// since its documents were read is unknown until they are read again. A session policy or an
// identity-based policy of the caller is not modelled: what a role's trust says
// decides alone.
//
// All times come from time.Now and the package starts no goroutine except the
// HTTP server's own in [Fake.Start] and [Fake.StartPipe], so a Fake that is made
// inside a testing/synctest bubble runs on the bubble's clock.
//
// Sources: the STS API reference (AssumeRole, Common Errors), the IAM user guide
// on Signature Version 4 and on role chaining, and messages as users of AWS
// reported them.
package fakests
