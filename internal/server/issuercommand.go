package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/server/issuer"
)

// Rotation is how the issuer's key is changed.
type Rotation = issuer.Rotation

// IssuerConfig is the flags of `server issuer` and `server issuer rotate`.
type IssuerConfig struct {
	Kubeconfig, Namespace, Issuer string
	// Out is the folder for the documents, empty for the standard output.
	Out string
	// Rotation is that of `rotate`, nil for the other.
	Rotation *Rotation
}

// Validate finds flags that contradict each other, and names that are none.
func (c IssuerConfig) Validate() error {
	if err := issuer.ValidateURL(c.Issuer); err != nil {
		return fmt.Errorf("--issuer %q: %w", c.Issuer, err)
	}
	if len(validation.IsDNS1123Label(c.Namespace)) > 0 {
		return fmt.Errorf("--namespace %q: want the name of the server's own namespace, up to 63 lower-case letters, digits or -", c.Namespace)
	}
	if r := c.Rotation; r != nil && r.AtOnce && r.Published {
		return errors.New("--emergency and --published contradict each other: in an emergency nothing is waited for")
	}
	return nil
}

// RunIssuer prints the issuer's documents or rotates its key, and says what is to be done.
func RunIssuer(ctx context.Context, cfg IssuerConfig, documents, say io.Writer) error {
	client, err := apiServer(cfg.Kubeconfig)
	if err != nil {
		return err
	}
	operator := issuer.NewOperator(cfg.Issuer, client.Secrets(cfg.Namespace), say, documents)
	if cfg.Rotation != nil {
		return operator.Rotate(ctx, *cfg.Rotation)
	}
	return operator.Print(ctx, cfg.Out)
}

// apiServer is the client of a command that asks and ends.
func apiServer(kubeconfig string) (kube.Core, error) {
	config, err := kube.Config(kubeconfig, "iam4kube-server", &kube.Reach{})
	if err != nil {
		return kube.Core{}, err
	}
	client, _, err := kube.HTTPClient(config)
	if err != nil {
		return kube.Core{}, err
	}
	return kube.NewCore(config, client)
}
