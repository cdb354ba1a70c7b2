package inject

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// TokenLabel of a namespace with the value Enabled asks for tokens, of a pod with the value
// Disabled opts out.
const TokenLabel = "iam4kube.io/token"

const (
	tokenVolume   = "iam4kube-token"
	tokenAudience = "iam4kube.io"
	tokenSeconds  = 3600
	tokenFolder   = "/var/run/secrets/iam4kube.io/serviceaccount"
	tokenFile     = "token"
	volumes       = "/spec/volumes"
)

// Variables of AWS's SDKs,
// https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
const (
	variableFile     = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
	variableRelative = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
	variableFull     = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
)

// ownVariables are those by which a container says itself where its credentials come from.
// SDKs differ in which of them wins over which.
var ownVariables = []string{
	variableFile, variableRelative, variableFull,
	"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ACCESS_KEY_ID",
}

// tokenVariables are what a container gets. Every client since 2016 works with the relative
// URI, and some send no token then; with the full one all send it that know it, and older
// ones fail. With both, clients differ, so there is one.
func tokenVariables(only bool) []corev1.EnvVar {
	uri := corev1.EnvVar{Name: variableRelative, Value: "/v1/credentials"}
	if only {
		uri = corev1.EnvVar{Name: variableFull, Value: "http://169.254.170.23/v1/credentials"}
	}
	return []corev1.EnvVar{{Name: variableFile, Value: tokenFolder + "/" + tokenFile}, uri}
}

// DecideToken says what happens to a pod that is created in a namespace whose pods get
// tokens; raw is its JSON, as the API server sends it, and only says that the namespace
// insists on tokens.
func (c Config) DecideToken(namespace string, raw []byte, only bool) Decision {
	p, err := read(raw)
	if err != nil {
		return malformed(err)
	}
	d := c.decideToken(namespace, p, only)
	d.Pod = p.name()
	return d
}

func (c Config) decideToken(namespace string, p *pod, only bool) Decision {
	if reason := c.skip(namespace, p, TokenLabel); reason != "" {
		return Decision{Outcome: Skipped, Reason: reason}
	}
	if len(p.Spec.Containers) == 0 {
		return Decision{Outcome: Denied, Reason: Malformed, Message: "the pod has no containers"}
	}
	present, taken := p.tokenVolume()
	if taken {
		return Decision{Outcome: Denied, Reason: NameTaken, Message: fmt.Sprintf(
			"a volume of the pod is called %s, as that of the token that iam4kube adds: give it another name, or label the pod %s: %s", tokenVolume, TokenLabel, Disabled)}
	}
	e := edit{variables: tokenVariables(only)}
	for i, raw := range p.Spec.InitContainers {
		var c container
		if err := utiljson.Unmarshal(raw, &c); err != nil {
			return unreadable(err)
		}
		if c.Name != ContainerName { // it needs none, and what else is in it is not ours
			e.container(c, fmt.Sprintf("%s/%d", initContainers, i))
		}
	}
	for i, c := range p.Spec.Containers {
		e.container(c, fmt.Sprintf("%s/%d", containers, i))
	}
	if e.holders > 0 && !present {
		e.add(volumes, p.Spec.Volumes == nil, projectedToken())
	}
	return e.decision(present)
}

// projectedToken has the defaults that the API server would fill in.
func projectedToken() corev1.Volume {
	return corev1.Volume{Name: tokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: tokenAudience, ExpirationSeconds: new(int64(tokenSeconds)), Path: tokenFile,
		}}},
		DefaultMode: new(corev1.ProjectedVolumeSourceDefaultMode),
	}}}
}

// tokenVolume says whether the volume is there, and whether another has its name. One that
// holds our token and more is ours: somebody has added to it.
func (p *pod) tokenVolume() (present, taken bool) {
	for _, v := range p.Spec.Volumes {
		if v.Name != tokenVolume {
			continue
		}
		present = slices.ContainsFunc(v.Projected.Sources, func(s projection) bool {
			return s.ServiceAccountToken.Audience == tokenAudience && s.ServiceAccountToken.Path == tokenFile
		})
		return present, !present
	}
	return false, false
}

// edit collects what is to be changed of a pod.
type edit struct {
	variables  []corev1.EnvVar
	operations []operation
	warnings   []string
	// holders are containers that have the token.
	holders int
}

// add appends to the list at a path, which there is none of yet if missing.
func (e *edit) add(list string, missing bool, values ...any) {
	if missing {
		e.operations = append(e.operations, operation{"add", list, values})
		return
	}
	for _, v := range values {
		e.operations = append(e.operations, operation{"add", list + "/-", v})
	}
}

// container gives one the token, unless it says by itself where its credentials come from.
func (e *edit) container(c container, at string) {
	has, own := e.has(c)
	if own != "" {
		e.warnings = append(e.warnings, fmt.Sprintf("container %s sets %s by itself, so it keeps what it has and gets no token of iam4kube", c.Name, own))
		return
	}
	mounted, other := c.tokenMount()
	if other {
		e.warnings = append(e.warnings, fmt.Sprintf("container %s has another mount at %s, so it gets no token of iam4kube", c.Name, tokenFolder))
		return
	}
	e.holders++
	var variables []any
	if !has {
		for _, v := range e.variables {
			variables = append(variables, v)
		}
	}
	if e.pastProxy(c, at) {
		variables = append(variables, corev1.EnvVar{Name: noProxy[0], Value: linkLocal})
	}
	if len(variables) > 0 {
		e.add(at+"/env", c.Env == nil, variables...)
	}
	if !mounted {
		e.add(at+"/volumeMounts", c.VolumeMounts == nil, corev1.VolumeMount{Name: tokenVolume, MountPath: tokenFolder, ReadOnly: true})
	}
}

// has says whether the container has all of our variables, or else which of that kind it has
// by itself.
func (e *edit) has(c container) (all bool, own string) {
	missing := len(e.variables)
	for _, v := range c.Env {
		switch ours := (corev1.EnvVar{Name: v.Name, Value: v.Value}); {
		case !slices.Contains(ownVariables, v.Name):
		case v.ValueFrom == nil && slices.Contains(e.variables, ours):
			missing--
			own = v.Name
		default:
			return false, v.Name
		}
	}
	if missing == 0 {
		return true, ""
	}
	return false, own
}

// tokenMount says whether the container has our mount, and whether it has another in its
// place.
func (c container) tokenMount() (mounted, other bool) {
	for _, m := range c.VolumeMounts {
		if path.Clean(m.MountPath) == tokenFolder {
			mounted = m.Name == tokenVolume && m.SubPath == "" && m.SubPathExpr == ""
			return mounted, !mounted
		}
	}
	return false, false
}

// linkLocal has the addresses at which the credentials are asked for.
const linkLocal = "169.254.0.0/16"

var (
	proxy   = []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"}
	noProxy = []string{"NO_PROXY", "no_proxy"}
)

// pastProxy leads requests for credentials past a proxy that the container names, because
// half of all clients would send the token there. It reports whether a variable for that is
// missing altogether.
func (e *edit) pastProxy(c container, at string) (missing bool) {
	if !slices.ContainsFunc(c.Env, func(v variable) bool { return slices.Contains(proxy, v.Name) && (v.Value != "" || v.ValueFrom != nil) }) {
		return false
	}
	missing = true
	for i, v := range c.Env {
		if !slices.Contains(noProxy, v.Name) {
			continue
		}
		missing = false
		switch {
		case v.ValueFrom != nil:
			e.warnings = append(e.warnings, fmt.Sprintf("container %s takes %s from elsewhere: add %s there, or clients may send their token to the proxy", c.Name, v.Name, linkLocal))
		case strings.TrimSpace(v.Value) == "*" || slices.Contains(strings.FieldsFunc(v.Value, func(r rune) bool { return r == ',' || r == ' ' }), linkLocal):
		default:
			e.operations = append(e.operations, operation{"add", fmt.Sprintf("%s/env/%d/value", at, i), strings.TrimPrefix(v.Value+","+linkLocal, ",")})
		}
	}
	return missing
}

func (e *edit) decision(present bool) Decision {
	d := Decision{Outcome: Unchanged, Reason: Present, Warnings: e.warnings}
	switch {
	case e.holders == 0:
		d.Outcome, d.Reason = Skipped, OwnVariables
	case len(e.operations) > 0:
		text, err := json.Marshal(e.operations)
		if err != nil {
			return malformed(err)
		}
		d.Outcome, d.Reason, d.Patch = Injected, New, text
		if present {
			d.Reason = Restored
		}
	}
	return d
}
