package ip2service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

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
	return ask(ctx, cfg.probes(podIPs), log)
}

// otherFamily is how long a family is still tried when the other one has an answer. Where
// its way is dead, each start of a pod takes as much longer.
const otherFamily = 5 * time.Second

// endpointMode is what AWS clients read to ask the metadata service by IPv6. The webhook
// sets it here, too, where it sets it in the pod's containers.
const endpointMode = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"

// ask probes by all families at once. The way by one of them is enough for the pod: most
// clients ask by IPv4 alone, and the rules reject what has no way. An answer that is wrong
// is one too many.
func ask(ctx context.Context, probes []probe.Probe, log *zap.Logger) error {
	if len(probes) == 0 {
		log.Warn("the pod starts without credentials", zap.String(logging.Cause, "it has no address in a family of --to"))
		return nil
	}
	if !slices.ContainsFunc(probes, func(p probe.Probe) bool { return p.Address.Addr().Is4() }) && os.Getenv(endpointMode) == "" {
		log.Warn("the metadata service is led to a server by IPv6 alone, and AWS clients ask it by IPv4 unless they are told otherwise: set AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6 in the pod's containers",
			zap.Stringer(logging.Address, probes[0].Address))
	}
	type result struct {
		address netip.AddrPort
		without probe.Without
		err     error
	}
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	one, enough := context.WithCancel(trying)
	defer enough()
	results := make(chan result, len(probes))
	for _, p := range probes {
		go func() {
			p.Enough = one.Done()
			p.Late = func(err error) {
				log.Warn("no server has answered yet, trying on", zap.Stringer(logging.Address, p.Address), zap.Error(err))
			}
			without, err := p.Run(trying)
			results <- result{p.Address, without, err}
		}()
	}
	var unreached []result
	var failure error
	for range probes {
		switch r := <-results; {
		case r.err == nil:
			answered(r.address, r.without, log)
			time.AfterFunc(otherFamily, enough)
		case errors.Is(r.err, probe.ErrUnreached):
			unreached = append(unreached, r)
		default:
			failure = cmp.Or(failure, r.err)
			cancel()
		}
	}
	if failure != nil || len(unreached) == len(probes) || ctx.Err() != nil {
		for _, r := range unreached {
			failure = cmp.Or(failure, r.err)
		}
		return failure
	}
	for _, r := range unreached {
		log.Warn("the pod starts without a way by one family of addresses, whose requests are rejected", zap.Stringer(logging.Address, r.address), zap.Error(r.err))
	}
	return nil
}

func answered(address netip.AddrPort, without probe.Without, log *zap.Logger) {
	if without != "" {
		log.Warn("the pod starts without credentials", zap.Stringer(logging.Address, address), zap.String(logging.Cause, string(without)))
		return
	}
	log.Info("the pod's credentials are ready", zap.Stringer(logging.Address, address))
}

func (c Config) podRoutes() routes.Routes {
	return routes.Routes{Hooks: routes.Pod, Intercept: c.Intercept, DNS: c.AllowDNS, New: c.To, Live: c.To}
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
