package inject

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// user is that of the images, and exists nowhere else.
const user = 65532

// What the container may use. Requests are equal to limits, so that a Guaranteed pod
// stays one and a ResourceQuota is content. A pod is charged the larger of its init
// containers and its containers together: more than this would cost small pods something
// for as long as they live, less would slow their start down.
var resources = corev1.ResourceList{
	corev1.ResourceCPU:    resource.MustParse("100m"),
	corev1.ResourceMemory: resource.MustParse("32Mi"),
}

// container is what is injected. It has the defaults that the API server would fill in
// and every setting that it would otherwise inherit from the pod and that would keep it
// from working.
//
// Where the pod as a whole has resources, ours has none: the pod's decide about the quality
// of service and quotas, may be smaller than ours, which the API server would refuse, and
// would be filled up by it from ours.
func (c Config) container(service Service, p *pod) corev1.Container {
	args := []string{"--mode", "pod"}
	for _, address := range service.To {
		args = append(args, "--to", address.String())
	}
	args = append(args, "--pod-ips", "$(POD_IPS)", "--pod", "$(POD_NAMESPACE)/$(POD_NAME)", "--probe-timeout", c.ProbeTimeout.String(), "--wait", c.Wait.String())
	if c.AllowDNS {
		args = append(args, "--allow-dns")
	}
	for _, a := range c.Intercept {
		args = append(args, "--intercept-ip", a.String())
	}
	env := []corev1.EnvVar{
		fromPod("POD_IPS", "status.podIPs"),
		fromPod("POD_NAMESPACE", "metadata.namespace"),
		fromPod("POD_NAME", "metadata.name"),
	}
	if service.ipv6Alone() { // as in the others, so that it does not warn that they lack it
		env = append(env, corev1.EnvVar{Name: endpointMode, Value: "IPv6"})
	}
	var requirements corev1.ResourceRequirements
	if len(p.Spec.Resources.Requests)+len(p.Spec.Resources.Limits) == 0 {
		requirements = corev1.ResourceRequirements{Limits: resources, Requests: resources}
	}
	return corev1.Container{
		Name:                     ContainerName,
		Image:                    c.Image,
		Args:                     args,
		Env:                      env,
		Resources:                requirements,
		TerminationMessagePath:   corev1.TerminationMessagePathDefault,
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		ImagePullPolicy:          c.PullPolicy,
		SecurityContext: &corev1.SecurityContext{
			Capabilities: &corev1.Capabilities{
				Add:  []corev1.Capability{"NET_ADMIN"},
				Drop: []corev1.Capability{"ALL"},
			},
			Privileged:               new(false),
			RunAsUser:                new(int64(user)),
			RunAsGroup:               new(int64(user)),
			RunAsNonRoot:             new(true),
			ReadOnlyRootFilesystem:   new(true),
			AllowPrivilegeEscalation: new(false),
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			AppArmorProfile:          appArmor(p),
		},
	}
}

// fromPod is an environment variable with a field of the pod.
func fromPod(name, field string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: field},
	}}
}

// appArmor is the runtime's profile in place of one of the node's that was made for the
// pod's own programs. Else it stays open: kubelets of nodes without AppArmor refuse pods that
// name any.
func appArmor(p *pod) *corev1.AppArmorProfile {
	if p.Spec.SecurityContext.AppArmorProfile.Type != corev1.AppArmorProfileTypeLocalhost {
		return nil
	}
	return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
}
