package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/trust"
)

// TrustConfig is the flags of `server trust`; docs/server.md describes them.
type TrustConfig struct {
	// Account is NAMESPACE/NAME of the ServiceAccount.
	Account    string
	Kubeconfig string
	// Principal is the ARN of the server's own role or user; empty: STS is asked.
	Principal string
	// Issuer is the URL of the tokens' issuer where the server has no AWS credentials.
	Issuer   string
	Sessions role.Sessions
}

// Validate finds flags that contradict each other, and a name that is none.
func (c TrustConfig) Validate() error {
	name := splitName(c.Account)
	if len(validation.IsDNS1123Label(name.Namespace)) > 0 || len(validation.IsDNS1123Subdomain(name.Name)) > 0 {
		return fmt.Errorf("trust %q: want NAMESPACE/NAME of a ServiceAccount, such as shop/orders, before the flags", c.Account)
	}
	if c.Issuer != "" && c.Principal != "" {
		return errors.New("--issuer and --principal: want one, tokens of an issuer are in the place of an identity of the server's own")
	}
	if c.Principal != "" {
		if _, uncertain, err := trust.Principal(c.Principal); err != nil || uncertain {
			return fmt.Errorf("--principal %q: %w", c.Principal, trust.ErrNoPrincipal)
		}
	}
	if len(c.Sessions.Tags) > 0 && !c.Sessions.Tagged {
		return errors.New("--session-tag without --session-tags, which says that sessions have tags")
	}
	if err := c.Sessions.Validate(); err != nil {
		return fmt.Errorf("--session-tag, --cluster: %w", err)
	}
	return nil
}

// RunTrust writes the trust policy that the role of a ServiceAccount needs.
func RunTrust(ctx context.Context, cfg TrustConfig, log *zap.Logger, out io.Writer) error {
	r, err := annotatedRole(ctx, cfg)
	if err != nil {
		return err
	}
	var policy trust.Policy
	if cfg.Issuer != "" {
		policy, err = trust.ForWebIdentity(r, cfg.Issuer)
	} else {
		var principal string
		if principal, err = ownPrincipal(ctx, cfg.Principal, log); err == nil {
			policy = trust.ForRole(r, principal)
		}
	}
	if err != nil {
		return err
	}
	text, err := policy.JSON()
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

// annotatedRole is that of the ServiceAccount, which is listed because the server may do that.
func annotatedRole(ctx context.Context, cfg TrustConfig) (*role.Role, error) {
	client, err := apiServer(cfg.Kubeconfig)
	if err != nil {
		return nil, err
	}
	name := splitName(cfg.Account)
	list, err := client.ServiceAccounts(name.Namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name.Name).String()})
	if err != nil {
		return nil, fmt.Errorf("look for ServiceAccount %s: %w", cfg.Account, err)
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("there is no ServiceAccount %s", cfg.Account)
	}
	sessions := cfg.Sessions
	sessions.Duration = time.Hour // of no concern to a trust policy
	r, err := role.FromAnnotations(name.Namespace, name.Name, list.Items[0].Annotations, sessions)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, fmt.Errorf("ServiceAccount %s has no annotation %s", cfg.Account, role.AnnotationARN)
	}
	return r, nil
}

// ownPrincipal is what the flag says, or whom STS takes this process for.
func ownPrincipal(ctx context.Context, flag string, log *zap.Logger) (string, error) {
	if flag != "" {
		return flag, nil
	}
	client, err := sts.New(ctx, sts.NewLimiter(1, 1), "", prometheus.NewRegistry())
	if err != nil {
		return "", fmt.Errorf("whom STS takes the server for, unless --principal says it: %w", err)
	}
	self, err := client.GetCallerIdentity(ctx)
	if err != nil {
		return "", fmt.Errorf("whom STS takes the server for, unless --principal says it: %w", err)
	}
	arn, uncertain, err := trust.Principal(self.ARN)
	if err != nil {
		return "", fmt.Errorf("the server's own identity, unless --principal says it: %w", err)
	}
	if uncertain {
		log.Warn("a path of the server's own role is not known here: if it has one, use --principal")
	}
	return arn, nil
}
