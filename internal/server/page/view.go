package page

import (
	"cmp"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/iam4kube/iam4kube/internal/buildinfo"
	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/identity"
)

const (
	// mostRows of a table are shown; what is more a filter finds.
	mostRows = 500
	// followSeconds is how often the page is asked for anew.
	followSeconds = 5
)

// filter is what of the roles and namespaces is shown: its parameters in the page's address.
type filter struct {
	// Text is in what is shown, whatever its case; Namespace and State are exact.
	Text, Namespace, State string
	Following              bool
}

// With is the address of the page with another State.
func (f filter) With(state string) string { f.State = state; return f.address() }

// In is the address of the page with another Namespace.
func (f filter) In(namespace string) string { f.Namespace = namespace; return f.address() }

// Toggled is the address of the page that does, or does not, follow.
func (f filter) Toggled() string { f.Following = !f.Following; return f.address() }

func (f filter) address() string {
	query := url.Values{}
	for name, value := range map[string]string{"q": f.Text, "namespace": f.Namespace, "state": f.State} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if !f.Following {
		query.Set("follow", "no")
	}
	return "/?" + query.Encode()
}

func (f filter) hasRole(r credentials.RoleState) bool {
	return (f.State == "" || f.State == r.State) && (f.Namespace == "" || f.Namespace == r.Namespace) &&
		f.finds(r.Namespace, r.ServiceAccount, r.ARN, r.SessionName, r.AccessKeyID, r.State, r.Failure)
}

func (f filter) hasNamespace(n identity.NamespaceState) bool {
	return (f.Namespace == "" || f.Namespace == n.Name) && f.finds(n.Name)
}

func (f filter) finds(in ...string) bool {
	wanted := strings.ToLower(f.Text)
	return wanted == "" || slices.ContainsFunc(in, func(text string) bool { return strings.Contains(strings.ToLower(text), wanted) })
}

// view is what the template shows.
type view struct {
	Now                        time.Time
	Replica, Version, Revision string
	NotReady                   error
	Filter                     filter
	FollowSeconds              int
	// Troubles are gauges that should be 0.
	Troubles []count
	// States are the numbers of roles, and Waiting those of requests by what is missing.
	States, Waiting []count
	Watches         []watch
	Others          []netip.Addr
	Roles           []credentials.RoleState
	Namespaces      []namespace
	// Found are how many roles and namespaces the filter lets through.
	FoundRoles, AllRoles, FoundNamespaces int
}

type count struct {
	Name string
	N    int
}

type watch struct {
	Resource string
	Listed   bool
	Heard    time.Time
}

type namespace struct {
	identity.NamespaceState
	// Failing are its roles that have no credentials, or old ones.
	Roles, Failing int
}

// states in the order in which roles are listed: the worst first.
var states = []string{"identity", "denied", "unavailable", "throttled", "valid-failing", "pending", "valid"}

func (s Source) look(query url.Values, now time.Time) view {
	hostname, _ := os.Hostname() // it is for reading only
	v := view{
		Now: now, Replica: hostname, Version: buildinfo.Version(), Revision: buildinfo.Revision(), NotReady: s.Ready(), Others: s.Replicas(),
		Filter:        filter{Text: query.Get("q"), Namespace: query.Get("namespace"), State: query.Get("state"), Following: query.Get("follow") != "no"},
		FollowSeconds: followSeconds,
	}
	v.measure(s)
	roles := s.Roles()
	v.AllRoles = len(roles)
	v.list(roles, s.Namespaces())
	return v
}

// list fills in roles and namespaces.
func (v *view) list(roles []credentials.RoleState, namespaces []identity.NamespaceState) {
	byState, byNamespace := map[string]int{}, map[string]namespace{}
	for _, r := range roles {
		byState[r.State]++
		n := byNamespace[r.Namespace]
		n.Roles++
		if r.State != "valid" && r.State != "pending" {
			n.Failing++
		}
		byNamespace[r.Namespace] = n
		if v.Filter.hasRole(r) {
			v.Roles = append(v.Roles, r)
		}
	}
	for _, state := range states {
		v.States = append(v.States, count{state, byState[state]})
	}
	slices.SortStableFunc(v.Roles, func(a, b credentials.RoleState) int {
		return cmp.Compare(slices.Index(states, a.State), slices.Index(states, b.State))
	})
	for _, n := range namespaces {
		if v.Filter.hasNamespace(n) {
			shown := byNamespace[n.Name]
			shown.NamespaceState = n
			v.Namespaces = append(v.Namespaces, shown)
		}
	}
	slices.SortStableFunc(v.Namespaces, func(a, b namespace) int {
		return cmp.Or(cmp.Compare(b.Failing, a.Failing), cmp.Compare(b.Roles, a.Roles), cmp.Compare(a.Name, b.Name))
	})
	v.FoundRoles, v.FoundNamespaces = len(v.Roles), len(v.Namespaces)
	v.Roles, v.Namespaces = v.Roles[:min(len(v.Roles), mostRows)], v.Namespaces[:min(len(v.Namespaces), mostRows)]
}

// measure takes from the metrics what they know anyway.
func (v *view) measure(s Source) {
	families, _ := s.Metrics.Gather() // what there is in spite of an error is shown
	watches := map[string]watch{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			value, label := m.GetGauge().GetValue(), ""
			if labels := m.GetLabel(); len(labels) > 0 {
				label = labels[0].GetValue()
			}
			w := watches[label]
			w.Resource = label
			switch family.GetName() {
			case "iam4kube_waiting_requests":
				v.Waiting = append(v.Waiting, count{label, int(value)})
			case "iam4kube_informer_synced":
				w.Listed = value == 1
				watches[label] = w
			case "iam4kube_watch_last_event_timestamp_seconds":
				w.Heard = time.UnixMilli(int64(value * 1000))
				watches[label] = w
			case "iam4kube_cut_off", "iam4kube_stale", "iam4kube_sts_identity_refused", "iam4kube_ambiguous_addresses":
				v.Troubles = append(v.Troubles, count{strings.ReplaceAll(strings.TrimPrefix(family.GetName(), "iam4kube_"), "_", " "), int(value)})
			}
		}
	}
	for _, resource := range slices.Sorted(maps.Keys(watches)) {
		v.Watches = append(v.Watches, watches[resource])
	}
}
