package server

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/iam4kube/iam4kube/internal/auxserver"
	"github.com/iam4kube/iam4kube/internal/server/audit"
	"github.com/iam4kube/iam4kube/internal/server/issuer"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// minStaleness is above what a watch on which all is well is silent for at most.
const minStaleness = 5 * time.Minute

// Config is the server's flags; docs/server.md describes them.
type Config struct {
	ListenOn, AuxListenOn string
	Debug                 bool
	Kubeconfig            string
	Namespace             string
	STSRateLimit          float64
	STSRateBurst          int
	// Issuer is the URL of the tokens with which the server assumes roles where
	// Sessions.WebIdentity says so, in place of AWS credentials.
	Issuer string
	// AuditLog is the audit log's file, - for the standard output; empty: none.
	AuditLog        string
	SessionDuration time.Duration
	MaxWait         time.Duration
	Drain           time.Duration
	ReadyWithin     time.Duration
	MaxStaleness    time.Duration // 0: no limit
	IMDSv1          bool
	// Sessions is what all sessions have, but for Duration, which is SessionDuration.
	Sessions role.Sessions
	// DenyRolesByDefault: a namespace without the annotation of allowed roles has none.
	DenyRolesByDefault bool
	// TokenForwarders are ServiceAccounts whose pods may hand in the
	// tokens of others, each NAMESPACE/NAME.
	TokenForwarders          []string
	Region, AvailabilityZone string
}

// Validate finds flags that contradict each other, and names that are none.
func (c Config) Validate() error {
	if err := auxserver.CheckAddresses(c.ListenOn, c.AuxListenOn, c.Debug); err != nil {
		return err
	}
	switch {
	case c.MaxStaleness != 0 && c.MaxStaleness < minStaleness:
		return fmt.Errorf("--max-staleness %v: want 0, which sets no limit, or at least %v: a quiet watch is silent for up to three minutes", c.MaxStaleness, minStaleness)
	case c.SessionDuration%time.Second != 0:
		return fmt.Errorf("--session-duration %v: want whole seconds", c.SessionDuration)
	case len(validation.IsDNS1123Label(c.Namespace)) > 0:
		return fmt.Errorf("--namespace %q: want the name of the server's own namespace, up to 63 lower-case letters, digits or -", c.Namespace)
	}
	if c.Sessions.WebIdentity {
		if err := issuer.ValidateURL(c.Issuer); err != nil {
			return fmt.Errorf("--issuer %q: %w", c.Issuer, err)
		}
	}
	if err := audit.Check(c.AuditLog); err != nil {
		return fmt.Errorf("--audit-log %q: %w", c.AuditLog, err)
	}
	if len(c.Sessions.Tags) > 0 && !c.Sessions.Tagged {
		return errors.New("--session-tag without --session-tags, which says that sessions have tags")
	}
	if err := c.Sessions.Validate(); err != nil {
		return fmt.Errorf("--session-tag, --cluster: %w", err)
	}
	for _, account := range c.TokenForwarders {
		if name := splitName(account); len(validation.IsDNS1123Label(name.Namespace)) > 0 || len(validation.IsDNS1123Subdomain(name.Name)) > 0 {
			return fmt.Errorf("--token-forwarder %q: want NAMESPACE/NAME of a ServiceAccount, such as kube-system/csi-secrets-store", account)
		}
	}
	// The two stand in for labels, and pods get them as they are.
	for name, value := range map[string]string{"region": c.Region, "availability-zone": c.AvailabilityZone} {
		if len(validation.IsValidLabelValue(value)) > 0 {
			return fmt.Errorf("--%s %q: want what a label can hold, up to 63 letters, digits or any of ._-", name, value)
		}
	}
	return nil
}

// splitName splits NAMESPACE/NAME.
func splitName(text string) types.NamespacedName {
	namespace, name, _ := strings.Cut(text, "/")
	return types.NamespacedName{Namespace: namespace, Name: name}
}
