package check

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
)

func (i *installation) serverCheck(ctx context.Context) finding.Finding {
	switch s := i.server; {
	case i.serverErr != nil:
		return unseen("the Deployment "+cluster.Server, i.serverErr)
	case s == nil:
		return finding.NoServer.Is("there is no Deployment %s/%s", i.Namespace, cluster.Server)
	case s.Spec.Replicas != nil && *s.Spec.Replicas == 0:
		return finding.NoServer.Is("the Deployment %s/%s has 0 replicas", i.Namespace, cluster.Server)
	case s.Status.ReadyReplicas == 0:
		return finding.ServerNotReady.Is("no replica is ready: %s", i.whyNotReady(ctx, cluster.Server))
	case s.Status.ReadyReplicas < *s.Spec.Replicas:
		return finding.ServerNotReady.May("%d of %d replicas are ready: %s", s.Status.ReadyReplicas, *s.Spec.Replicas, i.whyNotReady(ctx, cluster.Server))
	}
	return finding.Good("%d of %d replicas are ready", i.server.Status.ReadyReplicas, *i.server.Spec.Replicas)
}

// each looks at the metrics of every replica that could be asked and has those that are needed.
// Nothing is said of a server that does not exist, which serverCheck tells of.
func (i *installation) each(what string, needed []string, look func(cluster.Replica) finding.Finding) finding.Finding {
	if i.server == nil && i.serverErr == nil {
		return finding.Finding{}
	}
	asked, err := i.asked()
	if err != nil {
		return unseen(what, err)
	}
	last, lacking := finding.Finding{}, finding.Finding{}
	for _, r := range asked {
		if name := r.Metrics.Lacks(needed...); name != "" {
			lacking = finding.Hidden("%s: %s has no metric %s: use the plugin of its version", what, r.Pod.Name, name)
			continue
		}
		if last = look(r); last.State != finding.OK {
			return last
		}
	}
	if lacking.State != "" {
		return lacking
	}
	if len(asked) < len(i.replicas) {
		for _, r := range i.replicas {
			if r.Err != nil {
				return unseen(what+" of "+r.Pod.Name, r.Err)
			}
		}
	}
	return last
}

func (i *installation) news(context.Context) finding.Finding {
	return i.each("what the servers hear from the API server", []string{"iam4kube_informer_synced", "iam4kube_stale", "iam4kube_cut_off"}, func(r cluster.Replica) finding.Finding {
		for resource, synced := range r.Metrics.Of("iam4kube_informer_synced", "resource") {
			if synced == 0 {
				return finding.NotSynced.Is("%s has not got the first list of %s", r.Pod.Name, resource)
			}
		}
		if r.Metrics["iam4kube_stale"] == 1 {
			return finding.Stale.Is("%s has heard nothing for longer than --max-staleness and refuses requests", r.Pod.Name)
		}
		if r.Metrics["iam4kube_cut_off"] == 1 {
			return finding.CutOff.May("%s hears nothing from the API server, and others do", r.Pod.Name)
		}
		return finding.Good("all lists have arrived")
	})
}

func (i *installation) identity(context.Context) finding.Finding {
	return i.each("whether STS takes the servers for somebody", []string{"iam4kube_sts_identity_refused"}, func(r cluster.Replica) finding.Finding {
		if r.Metrics["iam4kube_sts_identity_refused"] != 1 {
			return finding.Good("STS takes the servers' credentials")
		}
		for _, role := range r.Roles {
			if role.State == "identity" {
				return finding.Identity.Is("%s: %s", r.Pod.Name, role.Failure)
			}
		}
		return finding.Identity.Is("STS refuses the AWS credentials of %s, or it has none; its log says why", r.Pod.Name)
	})
}

func (i *installation) tokenKey(context.Context) finding.Finding {
	return i.each("the IMDSv2 token key", []string{"iam4kube_token_key_refused_total"}, func(r cluster.Replica) finding.Finding {
		if r.Metrics["iam4kube_token_key_refused_total"] > 0 {
			return finding.TokenKey.May("%s has found no usable key in the Secret iam4kube-token-key, %.0f times", r.Pod.Name, r.Metrics["iam4kube_token_key_refused_total"])
		}
		return finding.Good("usable")
	})
}

func (i *installation) ambiguous(context.Context) finding.Finding {
	return i.each("addresses that two pods claim", []string{"iam4kube_ambiguous_addresses"}, func(r cluster.Replica) finding.Finding {
		if n := r.Metrics["iam4kube_ambiguous_addresses"]; n > 0 {
			return finding.Ambiguous.Is("more than one live pod claims an address, %.0f times: %s", n, finding.List(claimed(r.Pods)))
		}
		return finding.Good("each is one pod's")
	})
}

// claimed are the addresses with more than one pod, and those.
func claimed(pods []cluster.PodState) []string {
	by := map[string][]string{}
	for _, p := range pods {
		if p.HostNetwork || p.Static || p.Ended || p.Terminating {
			continue
		}
		for _, a := range p.Addresses {
			by[a.String()] = append(by[a.String()], p.Namespace+"/"+p.Name)
		}
	}
	var all []string
	for _, a := range slices.Sorted(maps.Keys(by)) {
		if len(by[a]) > 1 {
			all = append(all, a+" ("+strings.Join(by[a], ", ")+")")
		}
	}
	return all
}

func (i *installation) roles(context.Context) finding.Finding {
	return i.each("roles", []string{"iam4kube_roles", "iam4kube_service_accounts"}, func(r cluster.Replica) finding.Finding {
		states := r.Metrics.Of("iam4kube_roles", "state")
		accounts := r.Metrics.Of("iam4kube_service_accounts", "role")
		for state, piece := range map[string]finding.Piece{"denied": finding.RolesDenied, "throttled": finding.Throttled} {
			if states[state] > 0 {
				return piece.May("%s: %.0f roles are %s%s", r.Pod.Name, states[state], state, failing(r.Roles, state))
			}
		}
		for kind, piece := range map[string]finding.Piece{"invalid": finding.AnnotationsWrong, "not-allowed": finding.RolesNotAllowed} {
			if accounts[kind] > 0 {
				return piece.May("%.0f ServiceAccounts name a role that is %s", accounts[kind], kind)
			}
		}
		return finding.Good("%.0f have credentials, %.0f are waited for", states["valid"], states["pending"])
	})
}

// failing names ServiceAccounts whose roles are in a state, where the debug listener says so.
func failing(roles []cluster.RoleState, state string) string {
	var names []string
	for _, r := range roles {
		if r.State == state {
			names = append(names, r.Namespace+"/"+r.ServiceAccount)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ": of the ServiceAccounts " + finding.List(names)
}

func (i *installation) versions(context.Context) finding.Finding {
	seen := map[string]bool{}
	f := i.each("the servers' versions", []string{"iam4kube_build_info"}, func(r cluster.Replica) finding.Finding {
		seen[r.Metrics.Label("iam4kube_build_info", "version")] = true
		return finding.Good("")
	})
	if f.State != finding.OK {
		return f
	}
	all := slices.Sorted(maps.Keys(seen))
	switch {
	case len(all) > 1:
		return finding.Versions.May("the servers have the versions %s", strings.Join(all, " and "))
	case all[0] != i.version:
		return finding.Skew.May("the plugin is %s, and the servers are %s", i.version, all[0])
	}
	return finding.Good("plugin and servers are %s", all[0])
}

// flags compares what the replicas run with; pods of an older template differ.
func (i *installation) flags(context.Context) finding.Finding {
	if len(i.replicas) < 2 {
		return finding.Finding{}
	}
	first := cluster.Flags(i.replicas[0].Pod.Spec)
	for _, r := range i.replicas[1:] {
		if !reflect.DeepEqual(first, cluster.Flags(r.Pod.Spec)) {
			return finding.Disagree.May("%s and %s run with different flags", i.replicas[0].Pod.Name, r.Pod.Name)
		}
	}
	return finding.Good("the same")
}

// served are the states in which pods get credentials.
func served(state string) bool { return state == "valid" || state == "valid-failing" }

// sameRoles compares what the replicas have for each role: pods reach any of them.
func (i *installation) sameRoles(context.Context) finding.Finding {
	if len(i.replicas) < 2 {
		return finding.Finding{}
	}
	var first *cluster.Replica
	have := map[string]bool{}
	for n, r := range i.replicas {
		if r.DebugErr != nil {
			return unseen("whether the replicas have the same roles", r.DebugErr)
		}
		if first == nil {
			first = &i.replicas[n]
			for _, role := range r.Roles {
				have[key(role)] = served(role.State)
			}
			continue
		}
		for _, role := range r.Roles {
			if with, known := have[key(role)]; known && with != served(role.State) {
				return finding.Disagree.May("%s has credentials of %s for %s/%s: %t, %s: %t", first.Pod.Name, role.ARN, role.Namespace, role.ServiceAccount, with, r.Pod.Name, !with)
			}
		}
		if len(r.Roles) != len(have) {
			return finding.Disagree.May("%s knows %d roles, and %s %d", first.Pod.Name, len(have), r.Pod.Name, len(r.Roles))
		}
	}
	return finding.Good("all have the same %d", len(have))
}

func key(r cluster.RoleState) string { return r.ARN + " " + r.SessionName }

// issuer looks at the tokens' issuer, where the server has no AWS credentials.
func (i *installation) issuer(ctx context.Context) finding.Finding {
	if i.server == nil {
		return finding.Finding{}
	}
	flags := cluster.Flags(i.server.Spec.Template.Spec)
	if !cluster.WebIdentity(flags) {
		return finding.Finding{}
	}
	f := i.each("whether the issuer serves the key that signs", []string{"iam4kube_issuer_check"}, func(r cluster.Replica) finding.Finding {
		outcomes := r.Metrics.Of("iam4kube_issuer_check", "outcome")
		switch {
		case outcomes["unpublished"] == 1:
			return finding.Unpublished.Is("%s finds that the issuer's URL does not serve the key with which it signs", r.Pod.Name)
		case outcomes["published"] == 1:
			return finding.Good("it does, says %s", r.Pod.Name)
		}
		return finding.Hidden("%s does not reach the issuer's URL, which AWS has to", r.Pod.Name)
	})
	if f.State != finding.Unseen {
		return f
	}
	return askIssuer(ctx, cluster.Value(flags, "issuer"))
}

// issuerTimeout bounds a web server of which nothing is known.
const issuerTimeout = 5 * time.Second

// askIssuer reads the document from here, which is as far from the cluster as AWS is.
func askIssuer(ctx context.Context, url string) finding.Finding {
	ctx, cancel := context.WithTimeout(ctx, issuerTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/.well-known/openid-configuration", http.NoBody)
	if err != nil {
		return finding.Unpublished.Is("--issuer %q is no URL", url)
	}
	response, err := (&http.Client{}).Do(request)
	if err != nil {
		return finding.Hidden("the issuer's documents, from here: %v", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	var document struct{ Issuer string }
	if err == nil {
		err = json.Unmarshal(body, &document)
	}
	switch {
	case response.StatusCode != http.StatusOK:
		return finding.Unpublished.Is("%s answers with status %d", request.URL, response.StatusCode)
	case err != nil:
		return finding.Unpublished.Is("%s is no JSON: %v", request.URL, err)
	case document.Issuer != url:
		return finding.Unpublished.Is("%s names the issuer %q", request.URL, document.Issuer)
	}
	return finding.Hidden("whether the issuer serves the key that signs; its document is there, %s", request.URL)
}
