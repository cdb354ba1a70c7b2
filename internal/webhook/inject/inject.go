// Package inject decides what happens to a pod that is about to be created: it becomes
// the patch that puts the init container iam4kube-ip2service in front of the others, or the
// one that gives its containers a token, it stays as it is, or it is refused. It owns the
// container, the volume, the variables and the reasons. Everything is
// a function of the pod, the configuration and the Service: it knows neither HTTP nor the
// API server.
package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

const (
	// ContainerName is the init container's.
	ContainerName = "iam4kube-ip2service"
	// Label of a namespace with the value Enabled opts in, of a pod with the value Disabled
	// out.
	Label    = "iam4kube.io/inject"
	Enabled  = "enabled"
	Disabled = "disabled"
)

// Config is what all injected containers have in common.
type Config struct {
	// Namespace is iam4kube's own, whose pods are left alone.
	Namespace  string
	Image      string
	PullPolicy corev1.PullPolicy
	// AllowDNS, Intercept, ProbeTimeout and Wait are passed on. Without addresses Intercept is
	// ip2service's own default.
	AllowDNS           bool
	Intercept          []netip.Addr
	ProbeTimeout, Wait time.Duration
}

// Service is where pods' requests are to go: an address of each of its families.
type Service struct {
	To []netip.AddrPort
	// Reason and Problem say why there is none, and what to do.
	Reason  Reason
	Problem string
}

// Outcome is what happens to the pod.
type Outcome string

// Outcomes.
const (
	Injected  Outcome = "injected"
	Unchanged Outcome = "unchanged" // it was injected before
	Skipped   Outcome = "skipped"
	Denied    Outcome = "denied"
)

// Reason is why.
type Reason string

// Reasons.
const (
	New      Reason = "new"
	Restored Reason = "restored" // a container of our name was not ours, or not the first; a part of the token's was missing
	Present  Reason = "present"

	HostNetwork Reason = "host-network"
	Windows     Reason = "windows"
	Mirror      Reason = "mirror"
	OptedOut    Reason = "opted-out"
	Namespace   Reason = "namespace" // kube-system or iam4kube's own
	NotANewPod  Reason = "not-a-new-pod"
	// OwnVariables: every container says by itself where its credentials come from.
	OwnVariables Reason = "own-variables"

	NameTaken Reason = "name-taken"
	Malformed Reason = "malformed"
	NotSynced Reason = "not-synced"
	NoService Reason = "no-service"
	Headless  Reason = "headless"
	NoPort    Reason = "no-port"
)

// Reasons are all pairs that can be.
var Reasons = map[Outcome][]Reason{
	Injected:  {New, Restored},
	Unchanged: {Present},
	Skipped:   {HostNetwork, Windows, Mirror, OptedOut, Namespace, NotANewPod, OwnVariables},
	Denied:    {NameTaken, Malformed, NotSynced, NoService, Headless, NoPort},
}

// Decision is what happens to a pod.
type Decision struct {
	Outcome Outcome
	Reason  Reason
	// Message tells the user of a pod that is denied what to do.
	Message string
	// Warnings tell the user of containers that were left as they are.
	Warnings []string
	// Patch is a JSON patch (RFC 6902) for a pod that is injected.
	Patch []byte
	// Pod is the pod's name, or what the API server will make one from.
	Pod string
}

// pod is the little that is read of a pod. The rest of it is neither decoded nor written,
// so that fields which this version does not know survive.
type pod struct {
	Metadata struct {
		Name         string            `json:"name"`
		GenerateName string            `json:"generateName"`
		Labels       map[string]string `json:"labels"`
		Annotations  map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		HostNetwork bool `json:"hostNetwork"`
		OS          struct {
			Name corev1.OSName `json:"name"`
		} `json:"os"`
		NodeSelector map[string]string `json:"nodeSelector"`
		Affinity     struct {
			NodeAffinity corev1.NodeAffinity `json:"nodeAffinity"`
		} `json:"affinity"`
		SecurityContext struct {
			AppArmorProfile corev1.AppArmorProfile `json:"appArmorProfile"`
		} `json:"securityContext"`
		Resources struct {
			Requests map[corev1.ResourceName]any `json:"requests"`
			Limits   map[corev1.ResourceName]any `json:"limits"`
		} `json:"resources"`
		InitContainers []json.RawMessage `json:"initContainers"`
		Containers     []container       `json:"containers"`
		Volumes        []volume          `json:"volumes"`
	} `json:"spec"`
}

// container is the little that is read of one.
type container struct {
	Name         string     `json:"name"`
	Env          []variable `json:"env"`
	VolumeMounts []struct {
		Name        string `json:"name"`
		MountPath   string `json:"mountPath"`
		SubPath     string `json:"subPath"`
		SubPathExpr string `json:"subPathExpr"`
	} `json:"volumeMounts"`
}

type variable struct {
	Name      string    `json:"name"`
	Value     string    `json:"value"`
	ValueFrom *struct{} `json:"valueFrom"`
}

type volume struct {
	Name      string `json:"name"`
	Projected struct {
		Sources []projection `json:"sources"`
	} `json:"projected"`
}

type projection struct {
	ServiceAccountToken struct {
		Audience string `json:"audience"`
		Path     string `json:"path"`
	} `json:"serviceAccountToken"`
}

func read(raw []byte) (*pod, error) {
	p := &pod{}
	return p, utiljson.Unmarshal(raw, p)
}

// name is the pod's, or what the API server will make one from.
func (p *pod) name() string { return cmp.Or(p.Metadata.Name, p.Metadata.GenerateName) }

func malformed(err error) Decision {
	return Decision{Outcome: Denied, Reason: Malformed, Message: fmt.Sprintf("iam4kube cannot read the pod: %v", err)}
}

func unreadable(err error) Decision {
	return Decision{Outcome: Denied, Reason: Malformed, Message: fmt.Sprintf("iam4kube cannot read an init container of the pod: %v", err)}
}

// Decide says what happens to a pod that is created in the namespace; raw is its JSON, as
// the API server sends it.
func (c Config) Decide(namespace string, raw []byte, service Service) Decision {
	p, err := read(raw)
	if err != nil {
		return malformed(err)
	}
	d := c.decide(namespace, p, service)
	d.Pod = p.name()
	return d
}

func (c Config) decide(namespace string, p *pod, service Service) Decision {
	if reason := c.skip(namespace, p, Label); reason != "" {
		return Decision{Outcome: Skipped, Reason: reason}
	}
	if len(p.Spec.Containers) == 0 {
		return Decision{Outcome: Denied, Reason: Malformed, Message: "the pod has no containers"}
	}
	if slices.ContainsFunc(p.Spec.Containers, func(c container) bool { return c.Name == ContainerName }) {
		return Decision{Outcome: Denied, Reason: NameTaken, Message: fmt.Sprintf(
			"a container of the pod is called %s, as the init container that iam4kube injects: give it another name", ContainerName)}
	}
	if service.Problem != "" {
		return Decision{Outcome: Denied, Reason: service.Reason, Message: fmt.Sprintf(
			"%s. To leave a pod out of the injection, label it %s: %s", service.Problem, Label, Disabled)}
	}
	return patch(p, c.container(service, p), service)
}

// skip says why a pod never gets what the label is about. Most of it the API server has asked before, by
// the webhook's selectors and matchConditions; whoever changes those must not break nodes.
//
// Whether the namespace has opted in is not among it: what this program could have seen of
// the namespace may be older than what made the API server send the pod, and then the pod
// would start open.
func (c Config) skip(namespace string, p *pod, label string) Reason {
	_, mirror := p.Metadata.Annotations[corev1.MirrorPodAnnotationKey]
	switch {
	case namespace == "kube-system", namespace == c.Namespace:
		return Namespace
	case mirror:
		return Mirror
	case p.Spec.HostNetwork && label == Label: // it has no network of its own to set rules in
		return HostNetwork
	case p.onWindows():
		return Windows
	case p.Metadata.Labels[label] == Disabled:
		return OptedOut
	}
	return ""
}

// osLabels are the labels of nodes that say what they run; kubelets still set the old one.
var osLabels = []string{corev1.LabelOSStable, "beta.kubernetes.io/os"}

// onWindows says whether the pod can run nowhere else.
func (p *pod) onWindows() bool {
	const windows = string(corev1.Windows)
	if p.Spec.OS.Name == corev1.Windows || slices.ContainsFunc(osLabels, func(l string) bool { return p.Spec.NodeSelector[l] == windows }) {
		return true
	}
	required := p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if required == nil || len(required.NodeSelectorTerms) == 0 {
		return false
	}
	// One of the terms is enough for a node, and all expressions of it have to match.
	return !slices.ContainsFunc(required.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool {
		return !slices.ContainsFunc(t.MatchExpressions, func(r corev1.NodeSelectorRequirement) bool {
			return slices.Contains(osLabels, r.Key) && r.Operator == corev1.NodeSelectorOpIn && slices.Equal(r.Values, []string{windows})
		})
	})
}
