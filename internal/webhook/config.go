package webhook

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/iam4kube/iam4kube/internal/auxserver"
)

// Config is the webhook's flags; docs/webhook.md describes them.
type Config struct {
	ListenOn, AuxListenOn         string
	Debug                         bool
	Kubeconfig                    string
	CertDir                       string
	ServiceNamespace, ServiceName string
	InitImage, InitPullPolicy     string
	AllowDNS                      bool
	Intercept                     []netip.Addr // none: as the init container has it by default
	ProbeTimeout, Wait            time.Duration
}

// PullPolicies are what --init-image-pull-policy accepts, the default first.
var PullPolicies = []string{string(corev1.PullIfNotPresent), string(corev1.PullAlways), string(corev1.PullNever)}

// Validate finds flags that contradict each other or what they name.
func (c Config) Validate() error {
	if err := auxserver.CheckAddresses(c.ListenOn, c.AuxListenOn, c.Debug); err != nil {
		return err
	}
	switch {
	case c.InitImage == "" || strings.TrimSpace(c.InitImage) != c.InitImage:
		return fmt.Errorf("--init-image %q: want the image of ip2service, such as registry.example/iam4kube/ip2service:v1.0.0", c.InitImage)
	case c.ProbeTimeout%time.Millisecond != 0, c.Wait%time.Millisecond != 0:
		return fmt.Errorf("--probe-timeout %v, --wait %v: want whole milliseconds", c.ProbeTimeout, c.Wait)
	case c.CertDir == "":
		return errors.New("--cert-dir is empty, want the folder of tls.crt and tls.key")
	case len(validation.IsDNS1123Label(c.ServiceNamespace)) > 0:
		return fmt.Errorf("--service-namespace %q: want the name of a namespace, up to 63 lower-case letters, digits or -", c.ServiceNamespace)
	case len(validation.IsDNS1035Label(c.ServiceName)) > 0:
		return fmt.Errorf("--service-name %q: want the name of a Service, up to 63 lower-case letters, digits or -", c.ServiceName)
	}
	return nil
}
