package server

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Config is the server's flags; docs/server.md describes them.
type Config struct {
	ListenOn, AuxListenOn    string
	Debug                    bool
	Kubeconfig               string
	Namespace                string
	STSRateLimit             float64
	STSRateBurst             int
	SessionDuration          time.Duration
	MaxWait                  time.Duration
	Drain                    time.Duration
	ReadyWithin              time.Duration
	IMDSv1                   bool
	Region, AvailabilityZone string
}

// Validate finds flags that contradict each other, and names that are none.
func (c Config) Validate() error {
	switch {
	case c.ListenOn == c.AuxListenOn && !strings.HasSuffix(c.ListenOn, ":0"):
		return fmt.Errorf("--listen-on and --aux-listen-on are both %s, want two addresses", c.ListenOn)
	case c.SessionDuration%time.Second != 0:
		return fmt.Errorf("--session-duration %v: want whole seconds", c.SessionDuration)
	case len(validation.IsDNS1123Label(c.Namespace)) > 0:
		return fmt.Errorf("--namespace %q: want the name of the server's own namespace, up to 63 lower-case letters, digits or -", c.Namespace)
	}
	// The two stand in for labels, and pods get them as they are.
	for name, value := range map[string]string{"region": c.Region, "availability-zone": c.AvailabilityZone} {
		if len(validation.IsValidLabelValue(value)) > 0 {
			return fmt.Errorf("--%s %q: want what a label can hold, up to 63 letters, digits or any of ._-", name, value)
		}
	}
	return nil
}
