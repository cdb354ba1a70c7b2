package fakests

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config describes the endpoint, not what is behind it.
type Config struct {
	// Region the endpoint serves, default us-east-1. Signatures must be scoped
	// to it, and its partition is the only one whose roles exist here.
	Region string

	// FractionalSeconds makes Expiration read 2006-01-02T15:04:05.000Z.
	// AWS sends whole seconds; the protocol (ISO 8601) allows both.
	FractionalSeconds bool

	// Issuers reaches the documents of OpenID Connect issuers, over https; default: any client.
	Issuers *http.Client
	// KeysFor is how long an issuer's keys are not read again. How long AWS keeps them is not
	// documented.
	KeysFor time.Duration

	// OnAnswer, if set, is called with each attempt once it has its outcome,
	// from the goroutine that serves the request.
	OnAnswer func(Attempt)
}

// Key is a long-term access key of an IAM user.
type Key struct {
	AccessKeyID     string `json:"accessKeyID"`     // AKIA and 16 characters
	SecretAccessKey string `json:"secretAccessKey"` // 40 characters at AWS, any here
	ARN             string `json:"arn"`             // arn:aws:iam::123456789012:user/NAME, or …:root
}

// WebIdentity is what a verified OpenID Connect token says about its bearer.
type WebIdentity struct {
	Provider string    // ARN of the OpenID Connect provider in IAM
	Subject  string    // claim sub, for example system:serviceaccount:NAMESPACE:NAME
	Audience string    // claim aud
	Expires  time.Time // claim exp
}

// Issued are the temporary credentials of one role session and where they came from.
type Issued struct {
	AccessKeyID     string // ASIA and 16 characters
	SecretAccessKey string
	SessionToken    string
	Expiration      time.Time

	RoleARN     string
	SessionName string
	ExternalID  string
	CallerARN   string // who assumed the role; empty for IssueSession

	Tags []Tag
	// Transitive are the keys of the tags that role chains keep.
	Transitive     []string
	SourceIdentity string
	PolicyARNs     []string
	// KeyID is that of the key which signed the web identity token.
	KeyID string
}

// ARN of the role session: arn:aws:sts::123456789012:assumed-role/ROLE/SESSION.
func (i Issued) ARN() string {
	role, err := parseRoleARN(i.RoleARN)
	if err != nil {
		panic(err) // only roles that passed AddRole have sessions
	}
	return role.session(i.SessionName)
}

// Fake is the service: an http.Handler and the accounts behind it.
// All methods may be called at any time and from any goroutine.
type Fake struct {
	cfg       Config
	partition string

	mu         sync.Mutex
	identities map[string]identity // by access key ID
	roles      map[string]Role     // by ARN
	tokens     map[string]WebIdentity
	providers  map[[2]string]OIDCProvider // by account and URL
	published  map[string]*published      // by the issuer's URL
	ahead      time.Duration              // of AWS's clock
	issued     map[string]Issued          // by access key ID
	faults     map[string][]Fault
	attempts   []*Attempt
	changed    chan struct{} // closed at the next change of attempts; nil when nobody waits
	secrets    []string
	tails      map[string][]string // of secrets, by their last bytes
}

var _ http.Handler = (*Fake)(nil)

// New returns a service that knows no key and no role.
func New(cfg Config) *Fake {
	cfg.Region = cmp.Or(cfg.Region, "us-east-1")
	return &Fake{
		cfg:        cfg,
		partition:  partitionOf(cfg.Region),
		identities: map[string]identity{},
		roles:      map[string]Role{},
		tails:      map[string][]string{},
		tokens:     map[string]WebIdentity{},
		providers:  map[[2]string]OIDCProvider{},
		published:  map[string]*published{},
		issued:     map[string]Issued{},
		faults:     map[string][]Fault{},
	}
}

// AddKey makes a long-term key known, or replaces the one with the same ID.
// It panics when a field is missing: that is a mistake of the test.
func (f *Fake) AddKey(key Key) {
	if err := f.addKey(key); err != nil {
		panic(err)
	}
}

func (f *Fake) addKey(key Key) error {
	if key.AccessKeyID == "" || key.SecretAccessKey == "" || !isPrincipalARN(key.ARN) {
		return fmt.Errorf("fakests: key %q needs an ID, a secret and the ARN of a user (has %q)", key.AccessKeyID, key.ARN)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.identities[key.AccessKeyID] = identity{arn: key.ARN, accessKeyID: key.AccessKeyID, secret: key.SecretAccessKey}
	f.keepSecret(key.SecretAccessKey)
	return nil
}

// RemoveKey makes a long-term or temporary key unknown, as a deleted or
// deactivated key is. Its secrets stay in [Fake.Secrets].
func (f *Fake) RemoveKey(accessKeyID string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.identities, accessKeyID)
}

// AddRole creates a role, or replaces the one with the same ARN. It panics on an
// ARN that IAM could not have given to a role in this partition.
func (f *Fake) AddRole(role Role) {
	if err := f.addRole(role); err != nil {
		panic(err)
	}
}

func (f *Fake) addRole(role Role) error {
	arn, err := parseRoleARN(role.ARN)
	if err != nil {
		return fmt.Errorf("fakests: role %q: %w", role.ARN, err)
	}
	if arn.partition != f.partition {
		return fmt.Errorf("fakests: role %q cannot exist behind an endpoint in %s (partition %s)", role.ARN, f.cfg.Region, f.partition)
	}
	role.MaxSessionDuration = cmp.Or(role.MaxSessionDuration, defaultDuration)
	if role.MaxSessionDuration < defaultDuration || role.MaxSessionDuration > maxDuration {
		return fmt.Errorf("fakests: role %q: MaxSessionDuration %d is not in 3600-43200", role.ARN, role.MaxSessionDuration)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.roles[role.ARN] = role
	return nil
}

// RemoveRole deletes a role. Credentials already issued for it stay valid.
func (f *Fake) RemoveRole(arn string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.roles, arn)
}

// AddWebIdentity makes a token valid for AssumeRoleWithWebIdentity. The token is
// opaque here: its signature is the identity provider's matter. Tokens that are verified need
// an [OIDCProvider].
func (f *Fake) AddWebIdentity(token string, identity WebIdentity) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens[token] = identity
	f.keepSecret(token)
}

// IssueSession returns credentials of a role session that came about without
// AssumeRole here, as an instance profile gives them to an EC2 instance. Their
// holder is an assumed role: what it assumes is role chaining.
func (f *Fake) IssueSession(roleARN, sessionName string, lifetime time.Duration) Issued {
	if _, err := parseRoleARN(roleARN); err != nil {
		panic(fmt.Errorf("fakests: role %q: %w", roleARN, err))
	}
	return f.issue(Issued{
		RoleARN:     roleARN,
		SessionName: sessionName,
		Expiration:  time.Now().Add(lifetime),
	})
}

// Issued tells where the credentials with this access key ID came from.
func (f *Fake) Issued(accessKeyID string) (Issued, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.issued[accessKeyID]
	return i, ok
}

// Secrets returns every secret string the service has ever known: secret keys,
// session tokens, web identity tokens. None of them may appear in a log, event,
// metric, dump or error. Access key IDs are not secret.
func (f *Fake) Secrets() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.secrets...)
}

// tail is how many of a secret's last bytes it is found by.
const tail = 16

// keepSecret needs mu.
func (f *Fake) keepSecret(secret string) {
	f.secrets = append(f.secrets, secret)
	if len(secret) < tail {
		return
	}
	end := secret[len(secret)-tail:]
	if !slices.Contains(f.tails[end], secret) {
		f.tails[end] = append(f.tails[end], secret)
	}
}

// FindSecret returns where in the text one of Secrets is, and its length, 0 if there is none. It
// goes through the text once: there may be 100,000 secrets, and 100 MB of logs.
func (f *Fake) FindSecret(text string) (at, length int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, secret := range f.secrets {
		if len(secret) < tail {
			if i := strings.Index(text, secret); i >= 0 {
				return i, len(secret)
			}
		}
	}
	for end := tail; end <= len(text); end++ {
		for _, secret := range f.tails[text[end-tail:end]] {
			if strings.HasSuffix(text[:end], secret) {
				return end - len(secret), len(secret)
			}
		}
	}
	return 0, 0
}

// Load adds keys, roles and providers from JSON: {"keys": [Key…], "roles": [Role…],
// "providers": [OIDCProvider…]}.
func (f *Fake) Load(file []byte) error {
	var content struct {
		Keys  []Key  `json:"keys"`
		Roles []Role `json:"roles"`

		Providers []OIDCProvider `json:"providers"`
	}
	if err := json.Unmarshal(file, &content); err != nil {
		return err
	}
	var errs []error
	for _, key := range content.Keys {
		errs = append(errs, f.addKey(key))
	}
	for _, role := range content.Roles {
		errs = append(errs, f.addRole(role))
	}
	for _, provider := range content.Providers {
		errs = append(errs, f.addOIDCProvider(provider))
	}
	return errors.Join(errs...)
}
