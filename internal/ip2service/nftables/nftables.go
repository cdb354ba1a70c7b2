// Package nftables is the data path through netfilter: it brings routes into the kernel by
// netlink and tells when somebody else changed them there. It owns the transaction: what
// is there is read, and if it is not what is wanted, one batch makes it so. What the rules
// are, and mean, is in package ruleset.
//
// Our tables have no owner flag, which would keep other processes from changing them: a
// table that an owner left behind is listed by nft before 1.1 in a form that it cannot
// read, and then `nft list ruleset > file` breaks that file. They are watched instead.
package nftables

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
)

// Kernel is the nftables of the network namespace that it is used in.
type Kernel struct{}

var families = map[routes.Family]nft.TableFamily{
	routes.IPv4: nft.TableFamilyIPv4,
	routes.IPv6: nft.TableFamilyIPv6,
}

// Sync makes the kernel's tables those of the routes, as Transact does. Kernels without ruleset.HalfOpen get the rest.
func (Kernel) Sync(want routes.Routes) (changed bool, err error) {
	rules := ruleset.Build(want)
	changed, err = Transact(rules)
	if errors.Is(err, routes.ErrUnsupported) {
		return Transact(rules.WithoutHalfOpen())
	}
	return changed, err
}

// Transact makes the kernel's tables those of the ruleset, in one transaction: at every
// moment a packet meets either all old or all new rules. It says whether anything had
// to be changed. On an error nothing was, unless the kernel lacks a part for one of two
// families: the other one is not left open for that.
func Transact(want ruleset.Ruleset) (changed bool, err error) {
	changed, err = transact(want)
	if errors.Is(err, routes.ErrUnsupported) && len(want) > 1 {
		for _, table := range want {
			also, _ := transact(ruleset.Ruleset{table}) // one of them fails as before
			changed = changed || also
		}
	}
	return changed, err
}

func transact(want ruleset.Ruleset) (changed bool, err error) {
	conn, err := nft.New(nft.AsLasting())
	if err != nil {
		return false, explain("open", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	var owner uint32
	for _, table := range want {
		if table.Family == routes.IPv6 && !ipv6() {
			continue
		}
		have, err := read(conn, table)
		if err != nil {
			return false, explain("read", err)
		}
		owner = max(owner, have.owner)
		changed = plan(conn, table, have) || changed
	}
	if !changed {
		return false, nil
	}
	err = conn.Flush()
	if owner != 0 && errors.Is(err, unix.EPERM) {
		return false, owned(owner, err)
	}
	return err == nil, explain("change", err)
}

// ipv6 says whether the kernel has IPv6. Without it there is no table in its family, and
// nothing to guard. /proc would say it too, but need not be mounted.
func ipv6() bool {
	socket, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(socket)
	}
	return !errors.Is(err, unix.EAFNOSUPPORT)
}

// state is what the kernel has of one table.
type state struct {
	exists bool
	flags  nft.TableFlags
	owner  uint32
	// fits says that table, chains and counters are as wanted, so that at most rules
	// differ.
	fits  bool
	rules map[string][]*nft.Rule // by chain
}

func read(conn *nft.Conn, want ruleset.Table) (s state, err error) {
	table := tableOf(want.Family)
	found, err := conn.ListTableOfFamily(table.Name, table.Family)
	if errors.Is(err, unix.ENOENT) {
		return s, nil
	} else if err != nil {
		return s, fmt.Errorf("table: %w", err)
	}
	s.exists, s.flags, s.owner = true, found.Flags, found.Owner
	s.rules = map[string][]*nft.Rule{}
	// Whatever else is in the table, chains, sets or objects, is in its count.
	objects := len(ruleset.Counters)
	if want.HalfOpen {
		objects++
	}
	s.fits = found.Flags == 0 && found.Use == uint32(len(want.Chains)+objects)
	for _, c := range want.Chains {
		chain, err := conn.ListChain(table, c.Name)
		if errors.Is(err, unix.ENOENT) {
			s.fits = false
			continue
		} else if err != nil {
			return s, fmt.Errorf("chain %s: %w", c.Name, err)
		}
		s.fits = s.fits && sameChain(chain, chainOf(table, c))
		if s.rules[c.Name], err = conn.GetRules(table, chain); err != nil {
			return s, fmt.Errorf("rules of chain %s: %w", c.Name, err)
		}
	}
	for _, name := range ruleset.Counters {
		_, err := conn.GetObject(&nft.CounterObj{Table: table, Name: name})
		if errors.Is(err, unix.ENOENT) {
			s.fits = false
		} else if err != nil {
			return s, fmt.Errorf("counter %s: %w", name, err)
		}
	}
	return s, nil
}

func sameChain(have, want *nft.Chain) bool {
	if (have.Hooknum == nil) != (want.Hooknum == nil) {
		return false
	}
	return want.Hooknum == nil || have.Type == want.Type && *have.Hooknum == *want.Hooknum &&
		*have.Priority == *want.Priority && have.Policy != nil && *have.Policy == *want.Policy
}

// plan adds to the transaction what makes the table as wanted.
func plan(conn *nft.Conn, want ruleset.Table, have state) (changes bool) {
	table := tableOf(want.Family)
	if !have.fits {
		// A chain's hook and priority cannot be changed in place.
		if have.exists {
			// Add and delete again is delete if it exists. Without its flags, adding would
			// be a change of them, which the kernel refuses for persist.
			conn.AddTable(&nft.Table{Family: table.Family, Name: table.Name, Flags: have.flags})
			conn.DelTable(table)
		}
		conn.AddTable(table)
		for _, name := range ruleset.Counters {
			conn.AddObj(&nft.CounterObj{Table: table, Name: name})
		}
		if want.HalfOpen {
			addHalfOpen(conn, table)
		}
		for _, c := range want.Chains {
			conn.AddChain(chainOf(table, c))
		}
	}
	for _, c := range want.Chains {
		rules := make([][]expr.Any, 0, len(c.Rules))
		for _, r := range c.Rules {
			rules = append(rules, expressions(want.Family, r))
		}
		kept, there := have.rules[c.Name]
		if c.Keep && there {
			rules = rules[:0]
			for _, r := range kept {
				if have.fits || selfContained(r) {
					rules = append(rules, r.Exprs)
				}
			}
		}
		if have.fits && same(want.Family, kept, rules) {
			continue
		}
		changes = true
		chain := chainOf(table, c)
		conn.FlushChain(chain)
		for _, e := range rules {
			conn.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: e})
		}
	}
	return changes || !have.fits
}

// selfContained says that the rule can be added to a table that is made anew, as all of
// ours can. Those of others may use chains, sets and objects that go with the old table.
func selfContained(r *nft.Rule) bool {
	return !slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		switch e := e.(type) {
		case *expr.Meta, *expr.Cmp, *expr.Ct, *expr.Payload, *expr.Numgen, *expr.Immediate, *expr.NAT:
			return false
		case *expr.Verdict:
			return e.Chain != ""
		case *expr.Objref:
			return !slices.Contains(ruleset.Counters, e.Name)
		}
		return true
	})
}

func tableOf(family routes.Family) *nft.Table {
	return &nft.Table{Family: families[family], Name: ruleset.TableName}
}

// defaults of the library are a map that each object is written into.
var defaults sync.Mutex

func addHalfOpen(conn *nft.Conn, table *nft.Table) {
	defaults.Lock()
	defer defaults.Unlock()
	conn.AddObj(&nft.NamedObj{Table: table, Name: ruleset.HalfOpen, Type: nft.ObjTypeCtTimeout, Obj: &expr.CtTimeout{
		L3Proto: uint16(table.Family), L4Proto: unix.IPPROTO_TCP,
		Policy: expr.CtStatePolicyTimeout{
			expr.CtStateTCPSYNSENT: ruleset.HalfOpenSeconds,
			expr.CtStateTCPCLOSE:   0,
			// As the kernel has it; the library has a tenth of that.
			expr.CtStateTCPESTABLISHED: 5 * 24 * 3600,
		},
	}})
}

var hooks = map[ruleset.Hook]*nft.ChainHook{
	ruleset.Prerouting:  nft.ChainHookPrerouting,
	ruleset.Input:       nft.ChainHookInput,
	ruleset.Forward:     nft.ChainHookForward,
	ruleset.Output:      nft.ChainHookOutput,
	ruleset.Postrouting: nft.ChainHookPostrouting,
}

func chainOf(table *nft.Table, c ruleset.Chain) *nft.Chain {
	chain := &nft.Chain{Table: table, Name: c.Name}
	if c.Hook != "" {
		chain.Type, chain.Hooknum, chain.Policy = nft.ChainType(c.Type), hooks[c.Hook], new(nft.ChainPolicyAccept)
		chain.Priority = new(nft.ChainPriority(c.Priority))
	}
	return chain
}

// Remove deletes our tables, and says whether there were any.
func (Kernel) Remove() (removed bool, err error) {
	conn, err := nft.New(nft.AsLasting())
	if err != nil {
		return false, explain("open", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	tables, err := conn.ListTables()
	if err != nil {
		return false, explain("read", err)
	}
	tables = slices.DeleteFunc(tables, func(t *nft.Table) bool {
		return t.Name != ruleset.TableName || t.Family != nft.TableFamilyIPv4 && t.Family != nft.TableFamilyIPv6
	})
	removed = len(tables) > 0
	for _, t := range tables {
		conn.DelTable(t)
	}
	err = conn.Flush()
	if errors.Is(err, unix.EPERM) {
		for _, t := range tables {
			if t.Owner != 0 {
				return false, owned(t.Owner, err)
			}
		}
	}
	return removed && err == nil, explain("remove", err)
}

// Counters are those of the tables that there are. They begin anew with the table.
func (Kernel) Counters() (map[routes.Family]routes.Counters, error) {
	conn, err := nft.New(nft.AsLasting())
	if err != nil {
		return nil, explain("open", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	counters := map[routes.Family]routes.Counters{}
	for _, family := range routes.Families {
		var of routes.Counters
		for name, value := range map[string]*uint64{ruleset.Translated: &of.Translated, ruleset.Rejected: &of.Rejected} {
			object, err := conn.GetObject(&nft.CounterObj{Table: tableOf(family), Name: name})
			if errors.Is(err, unix.ENOENT) {
				continue
			} else if err != nil {
				return nil, explain("read", err)
			}
			if counter, ok := object.(*nft.CounterObj); ok {
				*value = counter.Packets
			}
			counters[family] = of
		}
	}
	return counters, nil
}
