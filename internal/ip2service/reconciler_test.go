//go:build !podonly

package ip2service

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iam4kube/iam4kube/internal/ip2service/backends"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

var errKernel = errors.New("the kernel is out of order")

// Cases 1 and 2: the guard does not wait for the API server, and the endpoints of an
// earlier run stay until those of now are known.
func TestGuardComesBeforeTheEndpoints(t *testing.T) {
	t.Run("on a new node", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := startRig(t)
			b.wantRules(t, nil, nil)
			b.wantErr(t, errNotSynced)
			if closed(b.inSync) {
				t.Error("in sync without endpoints")
			}
			b.list("ready " + one)
			b.wantRules(t, []string{one}, []string{one})
			b.wantErr(t, nil)
			if !closed(b.inSync) {
				t.Error("not in sync")
			}
		})
	})
	t.Run("after an earlier run", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newRig()
			earlier := routes.Routes{
				Hooks: routes.Node, Intercept: b.cfg.Intercept,
				New: []netip.AddrPort{netip.MustParseAddrPort(one)}, Live: []netip.AddrPort{netip.MustParseAddrPort(one)},
			}
			b.kernel.there = &earlier
			b.reconcile()
			b.wantRules(t, []string{one}, []string{one})
			b.wantErr(t, errNotSynced)
			b.set.Replace(nil)
			b.reconcile()
			b.wantRules(t, nil, nil)
			b.wantErr(t, nil)
		})
	})
}

// Where the host cannot be looked at, endpoints cannot be judged: those of before stay, and
// the guard is put right all the same.
func TestGuardDoesNotNeedToSeeTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.list("ready " + one)
		blind := errors.New("no netlink")
		b.machine.change(func() { b.machine.err = blind })
		b.list("ready " + two)
		b.wantRules(t, []string{one}, []string{one})
		b.wantErr(t, blind)
		b.kernel.spoilGuard()
		synctest.Wait()
		b.wantRules(t, []string{one}, []string{one})
		b.kernel.fail(errKernel, nil)
		advance(lastRetry * 3 / 2)
		b.wantErr(t, blind)
		b.wantErr(t, errKernel)
		b.kernel.fail(nil, nil)
		b.machine.change(func() { b.machine.err = nil })
		advance(lastRetry*3/2 + linger)
		b.wantRules(t, []string{two}, []string{two})
		b.wantErr(t, nil)
	})
	synctest.Test(t, func(t *testing.T) {
		b := newRig()
		b.machine.err = errors.New("no netlink")
		b.reconcile()
		b.wantRules(t, nil, nil)
	})
}

// A service without any endpoint is known too.
func TestNoEndpointsAreInSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.list()
		b.wantRules(t, nil, nil)
		b.wantErr(t, nil)
	})
}

func TestFailuresAreRepeatedWithBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.list("ready " + one)
		for range 2 { // the back-off begins anew after a success
			b.takeLogs()
			b.kernel.takeSyncs()
			failures := b.metric(t, "iam4kube_ruleset_applies_total", "failure")
			b.kernel.fail(errKernel, nil)
			b.kernel.flush(true)
			advance(2 * time.Minute)
			b.wantErr(t, errKernel)
			times := b.kernel.takeSyncs()
			pause := firstRetry
			for i := 1; i < len(times); i++ {
				if took := times[i].Sub(times[i-1]); took < pause/2 || took >= pause*3/2 {
					t.Errorf("attempt %d came after %v, want %v and up to half more or less", i, took, pause)
				}
				pause = min(lastRetry, 2*pause)
			}
			if pause != lastRetry || float64(len(times)) != b.metric(t, "iam4kube_ruleset_applies_total", "failure")-failures {
				t.Errorf("%d attempts, the last pause %v", len(times), pause)
			}
			if n := count(b.takeLogs(), "could not bring"); n != 1 {
				t.Errorf("%d lines in the log for one reason, want one", n)
			}
			b.kernel.fail(nil, nil)
			advance(lastRetry * 3 / 2)
			b.wantRules(t, []string{one}, []string{one})
			b.wantErr(t, nil)
		}
	})
}

// What comes during the back-off is tried at once.
func TestEndpointsDoNotWaitForTheBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.kernel.fail(errKernel, nil)
		b.list("ready " + one)
		advance(2 * time.Minute)
		b.kernel.fail(nil, nil)
		b.list("ready " + two)
		b.wantRules(t, []string{two}, []string{one, two})
		b.wantErr(t, nil)
	})
}

// A transaction that failed, and one that was committed although Sync says that it failed,
// both end in the right rules, and nobody else is blamed.
func TestFaultBeforeAndAfterTheEffect(t *testing.T) {
	for name, fault := range map[string][2]error{"before": {errKernel, nil}, "after": {nil, errKernel}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startRig(t)
				b.list("ready "+one, "ready "+two)
				b.kernel.fail(fault[0], fault[1])
				b.list("ready " + two)
				b.wantErr(t, errKernel)
				if name == "after" {
					b.wantRules(t, []string{two}, []string{one, two})
				} else {
					b.wantRules(t, []string{one, two}, []string{one, two})
				}
				b.kernel.fail(nil, nil)
				advance(time.Second)
				b.wantRules(t, []string{two}, []string{two})
				b.wantErr(t, nil)
				if n := b.metric(t, "iam4kube_ruleset_repairs_total", ""); n != 0 {
					t.Errorf("%v repairs", n)
				}
			})
		})
	}
}

// Case 7.
func TestForeignChangeIsChangedBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.list("ready " + one)
		b.takeLogs()
		for i := range 3 {
			b.kernel.flush(true)
			synctest.Wait() // no time passes
			b.wantRules(t, []string{one}, []string{one})
			if n := b.metric(t, "iam4kube_ruleset_repairs_total", ""); n != float64(i+1) {
				t.Errorf("%v repairs, want %d", n, i+1)
			}
			advance(time.Minute)
		}
		if n := count(b.takeLogs(), "somebody changed the rules"); n != 3 {
			t.Errorf("%d lines in the log, want 3", n)
		}
	})
}

// A change that comes together with another endpoint is not told from our own: it is
// changed back, and not counted.
func TestForeignChangeBesideAnEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.list("ready " + one)
		b.kernel.flush(false)
		b.list("ready "+one, "ready "+two)
		b.wantRules(t, []string{one, two}, []string{one, two})
		if n := b.metric(t, "iam4kube_ruleset_repairs_total", ""); n != 0 {
			t.Errorf("%v repairs", n)
		}
	})
}

// Two programs that want different rules do not use up a processor over it, neither gives
// up, and after the fight all is as before.
func TestFightIsDamped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.list("ready " + one)
		b.kernel.takeSyncs()
		b.kernel.setRival(func() {
			if len(b.kernel.syncs) < 1000 { // or the test would never end
				b.kernel.there = nil
			}
		})
		b.kernel.flush(true)
		for range 60 {
			advance(time.Second)
			if n := len(b.kernel.takeSyncs()); n < 2 || n > 2*patience {
				t.Errorf("%d attempts in a second", n)
			}
		}
		if n := b.metric(t, "iam4kube_ruleset_repairs_total", ""); n < 100 || n > 150 {
			t.Errorf("%v repairs in a minute, want two a second", n)
		}
		b.kernel.setRival(nil)
		advance(truce)
		b.wantRules(t, []string{one}, []string{one})
		advance(2 * fight)
		b.kernel.flush(true)
		synctest.Wait()
		b.wantRules(t, []string{one}, []string{one})
	})
}

// A packet on its way through the old rules is not refused by the new ones.
func TestEndpointsThatVanishLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		const moment = time.Millisecond
		b.list("ready "+one, "ready "+two, "ready "+six)
		b.list("ready " + two)
		b.wantRules(t, []string{two}, []string{one, two, six})
		advance(linger - moment)
		b.wantRules(t, []string{two}, []string{one, two, six})
		advance(moment)
		b.wantRules(t, []string{two}, []string{two})

		// One that comes back stays, and lingers anew when it goes again.
		b.list("ready "+one, "ready "+two)
		b.list("ready " + two)
		advance(10 * moment)
		b.list("ready "+one, "ready "+two)
		advance(linger)
		b.wantRules(t, []string{one, two}, []string{one, two})
		b.list("ready " + two)
		advance(10 * moment)
		b.list("not-ready "+one, "ready "+two)
		b.wantRules(t, []string{two}, []string{one, two})
		b.list("ready " + two)
		advance(linger - moment)
		b.wantRules(t, []string{two}, []string{one, two})
		advance(moment)
		b.wantRules(t, []string{two}, []string{two})

		// Each by its own clock.
		b.list("ready "+one, "ready "+two)
		b.list("ready " + two)
		advance(10 * moment)
		b.list()
		b.wantRules(t, nil, []string{one, two})
		advance(linger - 10*moment)
		b.wantRules(t, nil, []string{two})
		advance(10 * moment)
		b.wantRules(t, nil, nil)
	})
}

// A draining endpoint, and one that is not ready, keep their connections for as long as they
// are listed.
func TestListedEndpointsStayLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.list("ready "+one, "ready "+two)
		b.list("terminating "+one, "ready "+two)
		advance(time.Hour)
		b.wantRules(t, []string{two}, []string{one, two})
		b.list("terminating "+one, "not-ready "+two)
		advance(time.Hour)
		b.wantRules(t, []string{one}, []string{one, two})
	})
}

// What no notification tells of is found by looking, and nothing else makes it look.
func TestResyncFindsWhatNobodyTold(t *testing.T) {
	const look = 30 * time.Second
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.list("ready " + one)
		b.kernel.takeSyncs()
		advance(10 * look)
		if n := len(b.kernel.takeSyncs()); n != 10 {
			t.Errorf("looked %d times in %v", n, 10*look)
		}
		b.kernel.flush(false)
		advance(look - time.Millisecond)
		if b.kernel.text() != "" {
			t.Error("repaired before the resync")
		}
		advance(time.Millisecond)
		b.wantRules(t, []string{one}, []string{one})
		if n := b.metric(t, "iam4kube_ruleset_repairs_total", ""); n != 1 {
			t.Errorf("%v repairs", n)
		}
	})
}

// Case 13.
func TestReadinessSaysWhyPodsAreNotServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.wantErr(t, errNotSynced)
		b.list("ready " + one)
		b.wantErr(t, nil)
		bridge4, bridge6 := errors.New("IPv4 bridge"), errors.New("IPv6 bridge")
		for name, c := range map[string]struct {
			unserved  map[routes.Family]error
			endpoints []string
			want      error
		}{
			"healthy":                             {nil, []string{"ready " + one, "ready " + six}, nil},
			"IPv4":                                {map[routes.Family]error{routes.IPv4: bridge4}, []string{"ready " + one}, bridge4},
			"IPv4 without endpoints":              {map[routes.Family]error{routes.IPv4: bridge4}, nil, bridge4},
			"IPv6":                                {map[routes.Family]error{routes.IPv6: bridge6}, []string{"ready " + one, "ready " + six}, bridge6},
			"IPv6 without endpoints of IPv6":      {map[routes.Family]error{routes.IPv6: bridge6}, []string{"ready " + one}, nil},
			"IPv6 with one that is not ready yet": {map[routes.Family]error{routes.IPv6: bridge6}, []string{"not-ready " + six}, bridge6},
		} {
			b.machine.change(func() { b.machine.unserved = c.unserved })
			b.list(c.endpoints...)
			advance(linger)
			if err := b.Err(); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		b.machine.change(func() { b.machine.unserved = map[routes.Family]error{routes.IPv4: bridge4} })
		advance(resync)
		b.wantErr(t, bridge4)
		b.machine.change(func() { b.machine.unserved = nil })
		advance(resync)
		b.wantErr(t, nil)
	})
}

// Case 12: an endpoint on the host's network, or on an intercepted address, gets nothing.
func TestEndpointsOfTheHostAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.machine.change(func() { b.machine.owns = []netip.Addr{netip.MustParseAddr("10.0.0.1")} })
		b.list("ready "+one, "ready "+two, "ready 169.254.169.254:80", "terminating [fd00:ec2::254]:80")
		b.wantRules(t, []string{two}, []string{two})
		b.wantErr(t, nil)
		if n := b.metric(t, "iam4kube_endpoints", string(backends.Refused)); n != 3 {
			t.Errorf("%v refused", n)
		}
	})
}

// Warnings come once for each change, however often the rules are looked at.
func TestLogSaysEachThingOnce(t *testing.T) {
	const refused, noPort, beside, sourceRoutes = "endpoint refused", "without the port", "past netfilter", "accepts source routes"
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		check := func(when string, want map[string]int) {
			t.Helper()
			advance(10 * resync)
			b.Trigger()
			synctest.Wait()
			messages := b.takeLogs()
			for _, part := range []string{"endpoints", refused, noPort, beside, sourceRoutes} {
				n := count(messages, part)
				if part == "endpoints" {
					n = len(slices.DeleteFunc(slices.Clone(messages), func(m string) bool { return m != part }))
				}
				if n != want[part] {
					t.Errorf("%s: %d lines about %q, want %d: %q", when, n, part, want[part], messages)
				}
			}
		}
		host := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
		b.machine.change(func() { b.machine.owns, b.machine.beside = host, []string{"cilium_host"} })
		b.list("ready "+one, "ready "+two)
		check("at first", map[string]int{"endpoints": 1, refused: 1, beside: 1})
		b.list("ready "+one, "terminating "+two)
		check("another endpoint has changed", map[string]int{"endpoints": 1})
		b.machine.change(func() { b.machine.sourceRoutes = true })
		check("source routes", map[string]int{sourceRoutes: 1})
		b.machine.change(func() { b.machine.owns, b.machine.beside, b.machine.sourceRoutes = nil, nil, false })
		check("all has become well", map[string]int{"endpoints": 1})
		b.machine.change(func() {
			b.machine.owns, b.machine.beside, b.machine.sourceRoutes = host, []string{"cilium_host"}, true
		})
		check("and worse again", map[string]int{"endpoints": 1, refused: 1, beside: 1, sourceRoutes: 1})
		b.set.Set(backends.Slice{Name: "t", NoPort: true})
		check("a slice without the port", map[string]int{noPort: 1})
		b.set.Set(backends.Slice{Name: "u", NoPort: true})
		check("another one", map[string]int{noPort: 1})
		b.list("ready "+one, "terminating "+two)
		check("both gone", nil)
	})
}

func TestMetricsOfTheRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRig(t)
		b.list()
		applied := b.metric(t, "iam4kube_ruleset_applies_total", "success")
		if applied != 1 {
			t.Errorf("%v transactions for the guard", applied)
		}
		b.machine.change(func() { b.machine.beside = []string{"cilium_host", "cilium_net"} })
		b.list("ready "+one, "ready "+two, "terminating "+six, "not-ready 10.0.0.3:8080")
		for series, want := range map[[2]string]float64{
			{"iam4kube_endpoints", "ready"}:                      2,
			{"iam4kube_endpoints", "terminating"}:                1,
			{"iam4kube_endpoints", "not-ready"}:                  1,
			{"iam4kube_endpoints", "refused"}:                    0,
			{"iam4kube_ruleset_applies_total", "success"}:        applied + 1,
			{"iam4kube_ruleset_applies_total", "failure"}:        0,
			{"iam4kube_ruleset_apply_duration_seconds", ""}:      applied + 1,
			{"iam4kube_ruleset_repairs_total", ""}:               0,
			{"iam4kube_bpf_host_routing_suspected", ""}:          1,
			{"iam4kube_ruleset_last_sync_timestamp_seconds", ""}: float64(time.Now().Unix()),
		} {
			if have := b.metric(t, series[0], series[1]); have != want {
				t.Errorf("%s: %v, want %v", fmt.Sprint(series), have, want)
			}
		}
		synced := time.Now()
		advance(3 * resync)
		if have := b.metric(t, "iam4kube_ruleset_applies_total", "success"); have != applied+1 {
			t.Errorf("%v transactions, want none where nothing changes", have)
		}
		if have := b.metric(t, "iam4kube_ruleset_last_sync_timestamp_seconds", ""); have != float64(synced.Add(3*resync).Unix()) {
			t.Errorf("last sync %v, want that of the last look", have)
		}
		b.kernel.fail(errKernel, nil)
		last := b.metric(t, "iam4kube_ruleset_last_sync_timestamp_seconds", "")
		advance(5 * time.Minute)
		if have := b.metric(t, "iam4kube_ruleset_last_sync_timestamp_seconds", ""); have != last {
			t.Errorf("last sync %v, want that before the failures", have)
		}
	})
}

// The end comes at once, whatever Run waits for, and leaves the rules.
func TestRunEndsWithItsContext(t *testing.T) {
	for name, prepare := range map[string]func(b *rig){
		"for changes":      func(*rig) {},
		"to repeat":        func(b *rig) { b.kernel.fail(errKernel, nil) },
		"during a fight":   func(b *rig) { b.kernel.setRival(func() { b.kernel.there = &routes.Routes{Intercept: intercept[:1]} }) },
		"for one to leave": func(b *rig) { b.set.Replace(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newRig()
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan time.Time)
				go func() {
					_ = b.Run(ctx)
					ended <- time.Now()
				}()
				b.list("ready " + one)
				prepare(b)
				b.kernel.flush(true)
				synctest.Wait()
				advance(10 * time.Millisecond)
				before, now := b.kernel.text(), time.Now()
				cancel()
				if at := <-ended; at != now {
					t.Errorf("ended after %v", at.Sub(now))
				}
				if after := b.kernel.text(); after != before {
					t.Errorf("the end has changed the rules to\n%s", after)
				}
			})
		})
	}
}
