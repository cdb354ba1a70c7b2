package ip2service

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/ip2service/probe"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/logging"
)

// runPod puts the rules in and asks whether the way is open, so that the pod's own first
// call finds it so.
func runPod(ctx context.Context, cfg Config, kernel dataPath, log *zap.Logger) error {
	if _, err := kernel.Sync(cfg.podRoutes()); err != nil {
		return err
	}
	log.Info("the rules are in")
	if cfg.ProbeTimeout == 0 {
		return nil
	}
	podIPs := cfg.PodIPs
	if len(podIPs) == 0 {
		var err error
		if podIPs, err = ownAddresses(); err != nil {
			return err
		}
	}
	probes := cfg.probes(podIPs)
	if len(probes) == 0 {
		log.Warn("the pod starts without credentials", zap.String(logging.Cause, "it has no address in a family of --to"))
	}
	for _, p := range probes {
		without, err := p.Run(ctx)
		if err != nil {
			return err
		}
		if without != "" {
			log.Warn("the pod starts without credentials", zap.Stringer(logging.Address, p.Address), zap.String(logging.Cause, string(without)))
			continue
		}
		log.Info("the pod's credentials are ready", zap.Stringer(logging.Address, p.Address))
	}
	return nil
}

func (c Config) podRoutes() routes.Routes {
	return routes.Routes{Hooks: routes.Pod, Intercept: c.Intercept, New: c.To, Live: c.To}
}

// probes ask by each family that the pod has an address of and that leads somewhere.
func (c Config) probes(podIPs []netip.Addr) []probe.Probe {
	var probes []probe.Probe
	for _, family := range routes.Families {
		r := c.podRoutes().Of(family)
		ofFamily := func(a netip.Addr) bool { return routes.FamilyOf(a) == family }
		if len(r.New) == 0 || len(r.Intercept) == 0 || !slices.ContainsFunc(podIPs, ofFamily) {
			continue
		}
		probes = append(probes, probe.Probe{
			Address: r.Intercept[0], Behind: r.New, Pod: c.Pod, PodIPs: podIPs, Wait: c.Wait, Timeout: c.ProbeTimeout,
		})
	}
	return probes
}

// ownAddresses are those of the pod's network namespace that others can see it by.
func ownAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the pod's addresses: %w", err)
	}
	var own []netip.Addr
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().IsGlobalUnicast() {
			own = append(own, prefix.Addr())
		}
	}
	return own, nil
}
