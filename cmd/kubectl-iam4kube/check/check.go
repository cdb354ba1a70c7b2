// Package check looks at a whole installation of iam4kube, category by category, as far as the
// user may see it. It owns the categories, their order and what each thing looks like when it
// is broken. One pod's way is of package why.
package check

import (
	"context"
	"errors"
	"fmt"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
)

// Category is checks that belong together.
type Category struct {
	Name   string            `json:"name"`
	Checks []finding.Finding `json:"checks"`
}

// Report is all of them, in order.
type Report struct {
	Categories []Category `json:"categories"`
}

// Findings are those of all categories.
func (r Report) Findings() []finding.Finding {
	var all []finding.Finding
	for _, c := range r.Categories {
		all = append(all, c.Checks...)
	}
	return all
}

// installation is what several checks look at, read once.
type installation struct {
	*cluster.Cluster

	// version is the plugin's own.
	version string

	server, webhook *appsv1.Deployment
	daemons         *appsv1.DaemonSet
	service         *corev1.Service
	// Errors of the four, nil also where one does not exist.
	serverErr, webhookErr, daemonsErr, serviceErr error
	// What is done to new pods.
	injection, tokens mutation

	replicas    []cluster.Replica
	replicasErr error
}

type look struct {
	name string
	look func(context.Context) finding.Finding
}

// Run looks at everything once.
func Run(ctx context.Context, c *cluster.Cluster, version string) Report {
	i := &installation{Cluster: c, version: version}
	report := Report{}
	basic := i.look(ctx, "API and versions", look{"API server", i.api}, look{"namespace", i.namespace})
	report.Categories = append(report.Categories, basic)
	if finding.Worst(basic.Checks) == finding.Broken {
		return report // nothing else means anything then
	}
	i.read(ctx)
	for _, category := range []Category{
		i.look(ctx, "rights", look{"server", i.serverRights}, look{"ip2service", i.ip2serviceRights}, look{"webhook", i.webhookRights}),
		i.look(ctx, "policies and webhook", look{"Service", i.serviceCheck}, look{"webhook", i.webhookCheck}, look{"configuration", i.configurationCheck},
			look{"mutating policies", i.mutatingPolicies}, look{"admission policies", i.policies}, look{"other objects", i.others}, look{"labels of namespaces", i.labels}),
		i.look(ctx, "certificate", look{"CA in the configuration", i.caBundle}, look{"certificates", i.certificates}, look{"what the webhook shows", i.serving}),
		i.look(ctx, "server and its AWS identity", look{"server", i.serverCheck}, look{"lists and watches", i.news}, look{"AWS identity", i.identity},
			look{"token key", i.tokenKey}, look{"addresses", i.ambiguous}, look{"roles", i.roles}),
		i.look(ctx, "routing on every node", look{"ip2service", i.routing}, look{"nodes", i.nodes}),
		i.look(ctx, "replicas agree", look{"versions", i.versions}, look{"flags", i.flags}, look{"roles", i.sameRoles}),
		i.look(ctx, "issuer", look{"published key", i.issuer}),
	} {
		if len(category.Checks) > 0 {
			report.Categories = append(report.Categories, category)
		}
	}
	return report
}

// look makes the checks of a category, in order. One without a state has nothing to say: what
// it looks at is not there, and need not be, or is told of elsewhere.
func (i *installation) look(ctx context.Context, name string, checks ...look) Category {
	done := Category{Name: name}
	for _, check := range checks {
		f := check.look(ctx)
		if f.State == "" {
			continue
		}
		f.Link = check.name
		done.Checks = append(done.Checks, f)
	}
	return done
}

// read asks for everything at the same time.
func (i *installation) read(ctx context.Context) {
	var reading sync.WaitGroup
	get := metav1.GetOptions{}
	reading.Go(func() {
		i.server, i.serverErr = present(i.AppsV1().Deployments(i.Namespace).Get(ctx, cluster.Server, get))
	})
	reading.Go(func() {
		i.webhook, i.webhookErr = present(i.AppsV1().Deployments(i.Namespace).Get(ctx, cluster.Webhook, get))
	})
	reading.Go(func() {
		i.daemons, i.daemonsErr = present(i.AppsV1().DaemonSets(i.Namespace).Get(ctx, cluster.IP2Service, get))
	})
	reading.Go(func() { i.injection = i.mutation(ctx, cluster.Webhook, "iam4kube-inject") })
	reading.Go(func() { i.tokens = i.mutation(ctx, cluster.Webhook+"-token", "iam4kube-token") })
	reading.Go(func() {
		i.service, i.serviceErr = present(i.CoreV1().Services(i.Namespace).Get(ctx, cluster.Service, get))
	})
	reading.Go(func() { i.replicas, i.replicasErr = i.Replicas(ctx, true) })
	reading.Wait()
}

// present is nil for what does not exist.
func present[T any](object *T, err error) (*T, error) {
	switch {
	case cluster.Absent(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return object, nil
}

// unseen is something that was not seen, for whatever reason.
func unseen(what string, err error) finding.Finding {
	return finding.Hidden("%s: %s", what, cluster.Reason(err))
}

// oldestMinor of Kubernetes 1 is the oldest that the tests run on: `make test-versions`.
const oldestMinor = 31

func (i *installation) api(context.Context) finding.Finding {
	version, err := i.Discovery().ServerVersion()
	if err != nil {
		return finding.NoAPI.Is("the API server does not answer: %s", cluster.Reason(err))
	}
	var minor int
	if _, err := fmt.Sscan(version.Minor, &minor); err == nil && version.Major == "1" && minor < oldestMinor {
		return finding.OldKubernetes.Is("Kubernetes %s, want 1.%d or later", version.GitVersion, oldestMinor)
	}
	return finding.Good("Kubernetes %s", version.GitVersion)
}

func (i *installation) namespace(ctx context.Context) finding.Finding {
	_, err := i.CoreV1().Namespaces().Get(ctx, i.Namespace, metav1.GetOptions{})
	switch {
	case cluster.Absent(err):
		return finding.NoNamespace.Is("there is no namespace %s", i.Namespace)
	case err != nil:
		return unseen("namespace "+i.Namespace, err)
	}
	return finding.Good("%s", i.Namespace)
}

// hasWebhook is whether new pods go by the webhook here, and routes whether nodes route. Both count
// as meant where a part of them was seen.
func (i *installation) hasWebhook() bool { return i.webhook != nil || len(i.configurations()) > 0 }

func (i *installation) routes() bool { return i.daemons != nil }

// asked are the replicas that answered. The error is why there are none.
func (i *installation) asked() ([]cluster.Replica, error) {
	if i.replicasErr != nil {
		return nil, i.replicasErr
	}
	var asked []cluster.Replica
	why := errors.New("no pod of the server runs")
	for _, r := range i.replicas {
		if r.Err == nil {
			asked = append(asked, r)
		} else {
			why = r.Err
		}
	}
	if len(asked) == 0 {
		return nil, why
	}
	return asked, nil
}
