package check

import (
	"errors"
	"maps"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
)

// What is asked of the API is tested in test/plugin, with a real one. Here it is what no
// test of a whole set-up makes: servers that are stale, cut off, throttled or of two versions.

// healthy are the metrics of a server on which all is well, as far as they are looked at.
const healthy = `iam4kube_build_info{version="v1"} 1
iam4kube_roles{state="valid"} 1
iam4kube_service_accounts{role="valid"} 1
iam4kube_informer_synced{resource="pods"} 1
iam4kube_stale 0
iam4kube_cut_off 0
iam4kube_sts_identity_refused 0
iam4kube_token_key_refused_total 0
iam4kube_ambiguous_addresses 0
`

func replica(name, metrics string) cluster.Replica {
	return cluster.Replica{
		Pod:     corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}},
		Metrics: cluster.ParseMetrics(healthy + metrics),
		Roles:   []cluster.RoleState{{Namespace: "shop", ServiceAccount: "orders", ARN: "arn", SessionName: "shop@orders", State: "valid"}},
	}
}

func with(replicas ...cluster.Replica) *installation {
	return &installation{version: "v1", server: &appsv1.Deployment{}, replicas: replicas}
}

func TestServers(t *testing.T) {
	for metrics, tc := range map[string]struct {
		look  func(*installation) finding.Finding
		state finding.State
		piece string
	}{
		`iam4kube_informer_synced{resource="nodes"} 0`: {func(i *installation) finding.Finding { return i.news(t.Context()) }, finding.Broken, "not-synced"},
		`iam4kube_stale 1`:                            {func(i *installation) finding.Finding { return i.news(t.Context()) }, finding.Broken, "stale-server"},
		`iam4kube_cut_off 1`:                          {func(i *installation) finding.Finding { return i.news(t.Context()) }, finding.Warning, "cut-off"},
		`iam4kube_sts_identity_refused 1`:             {func(i *installation) finding.Finding { return i.identity(t.Context()) }, finding.Broken, "aws-identity"},
		`iam4kube_token_key_refused_total 2`:          {func(i *installation) finding.Finding { return i.tokenKey(t.Context()) }, finding.Warning, "token-key"},
		`iam4kube_ambiguous_addresses 1`:              {func(i *installation) finding.Finding { return i.ambiguous(t.Context()) }, finding.Broken, "ambiguous-address"},
		`iam4kube_roles{state="throttled"} 1`:         {func(i *installation) finding.Finding { return i.roles(t.Context()) }, finding.Warning, "throttled"},
		`iam4kube_roles{state="denied"} 1`:            {func(i *installation) finding.Finding { return i.roles(t.Context()) }, finding.Warning, "roles-denied"},
		`iam4kube_service_accounts{role="invalid"} 1`: {func(i *installation) finding.Finding { return i.roles(t.Context()) }, finding.Warning, "annotations-wrong"},
		`iam4kube_service_accounts{role="not-allowed"} 1`: {
			func(i *installation) finding.Finding { return i.roles(t.Context()) }, finding.Warning, "roles-not-allowed",
		},
	} {
		// The second of two is enough, and the first alone is well.
		if f := tc.look(with(replica("a", ""), replica("b", metrics))); f.State != tc.state || f.Piece != tc.piece {
			t.Errorf("%s: %+v", metrics, f)
		}
		if f := tc.look(with(replica("a", ""))); f.State != finding.OK {
			t.Errorf("without %s: %+v", metrics, f)
		}
		unseen := replica("b", "")
		unseen.Err = errors.New("gone")
		if f := tc.look(with(replica("a", ""), unseen)); f.State != finding.Unseen || !strings.Contains(f.Text, "gone") {
			t.Errorf("%s, one not seen: %+v", metrics, f)
		}
		if f := tc.look(with()); f.State != finding.Unseen {
			t.Errorf("%s, no server: %+v", metrics, f)
		}
	}
}

func TestReplicasAgree(t *testing.T) {
	if f := with(replica("a", ""), replica("b", "")).sameRoles(t.Context()); f.State != finding.OK {
		t.Errorf("%+v", f)
	}
	other := replica("b", "")
	other.Roles[0].State = "denied"
	if f := with(replica("a", ""), other).sameRoles(t.Context()); f.Piece != "replicas-disagree" || !strings.Contains(f.Text, "shop/orders") {
		t.Errorf("%+v", f)
	}
	other.Roles = nil
	if f := with(replica("a", ""), other).sameRoles(t.Context()); f.Piece != "replicas-disagree" {
		t.Errorf("%+v", f)
	}
	other.DebugErr = cluster.ErrNoDebug
	if f := with(replica("a", ""), other).sameRoles(t.Context()); f.State != finding.Unseen {
		t.Errorf("%+v", f)
	}
	flag := replica("b", "")
	flag.Pod.Spec.Containers = []corev1.Container{{Args: []string{"--imdsv1=false"}}}
	if f := with(replica("a", ""), flag).flags(t.Context()); f.Piece != "replicas-disagree" {
		t.Errorf("%+v", f)
	}
}

func TestVersions(t *testing.T) {
	i := with(replica("a", ""), replica("b", ""))
	if f := i.versions(t.Context()); f.State != finding.OK {
		t.Errorf("%+v", f)
	}
	i.version = "v2"
	if f := i.versions(t.Context()); f.Piece != "version-skew" || f.State != finding.Warning {
		t.Errorf("%+v", f)
	}
	i.replicas[1].Metrics = cluster.ParseMetrics("iam4kube_build_info{version=\"v2\"} 1\n")
	if f := i.versions(t.Context()); f.Piece != "mixed-versions" || f.State != finding.Warning {
		t.Errorf("%+v", f)
	}
}

// What a server of another version does not tell is not well. What another one tells of is still
// seen.
func TestMetricsThatAreMissing(t *testing.T) {
	for metric, look := range map[string]func(*installation) finding.Finding{
		"iam4kube_informer_synced":         func(i *installation) finding.Finding { return i.news(t.Context()) },
		"iam4kube_stale":                   func(i *installation) finding.Finding { return i.news(t.Context()) },
		"iam4kube_cut_off":                 func(i *installation) finding.Finding { return i.news(t.Context()) },
		"iam4kube_sts_identity_refused":    func(i *installation) finding.Finding { return i.identity(t.Context()) },
		"iam4kube_token_key_refused_total": func(i *installation) finding.Finding { return i.tokenKey(t.Context()) },
		"iam4kube_ambiguous_addresses":     func(i *installation) finding.Finding { return i.ambiguous(t.Context()) },
		"iam4kube_roles":                   func(i *installation) finding.Finding { return i.roles(t.Context()) },
		"iam4kube_service_accounts":        func(i *installation) finding.Finding { return i.roles(t.Context()) },
		"iam4kube_build_info":              func(i *installation) finding.Finding { return i.versions(t.Context()) },
	} {
		other := replica("b", "")
		maps.DeleteFunc(other.Metrics, func(name string, _ float64) bool { return strings.HasPrefix(name, metric) })
		if f := look(with(replica("a", ""), other)); f.State != finding.Unseen || !strings.Contains(f.Text, "b has no metric "+metric) {
			t.Errorf("%s: %+v", metric, f)
		}
	}
	other := replica("a", "")
	delete(other.Metrics, "iam4kube_cut_off")
	if f := with(other, replica("b", "iam4kube_stale 1")).news(t.Context()); f.Piece != "stale-server" {
		t.Errorf("%+v", f)
	}
}

// Where the server signs tokens, it says itself whether its key is published.
func TestIssuer(t *testing.T) {
	for metrics, want := range map[string]finding.State{
		`iam4kube_issuer_check{outcome="published"} 1`: finding.OK, `iam4kube_issuer_check{outcome="unpublished"} 1`: finding.Broken,
	} {
		i := with(replica("a", metrics))
		if f := i.issuer(t.Context()); f.State != "" {
			t.Errorf("without an issuer: %+v", f)
		}
		i.server.Spec.Template.Spec.Containers = []corev1.Container{{Args: []string{"--sts-operation=AssumeRoleWithWebIdentity", "--issuer=https://issuer.invalid"}}}
		if f := i.issuer(t.Context()); f.State != want {
			t.Errorf("%s: %+v", metrics, f)
		}
	}
}
