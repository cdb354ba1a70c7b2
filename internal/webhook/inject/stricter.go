package inject

import (
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// stricter is ours with what admission has made stricter of it since: an admission plugin, a
// webhook or a policy that insists on that would refuse the pod if it were set back. Nothing
// of it can make the container do anything but what ours does, because whoever creates the
// pod may have written it, too. docs/webhook.md says so for each field.
func stricter(ours, present corev1.Container) corev1.Container {
	if present.ImagePullPolicy == corev1.PullAlways {
		ours.ImagePullPolicy = corev1.PullAlways
	}
	if pinned(ours.Image, present.Image) {
		ours.Image = present.Image
	}
	if present.SecurityContext == nil {
		return ours
	}
	has, want := present.SecurityContext, ours.SecurityContext.DeepCopy()
	ours.SecurityContext = want
	want.SELinuxOptions = has.SELinuxOptions
	if has.ProcMount != nil && *has.ProcMount == corev1.DefaultProcMount {
		want.ProcMount = has.ProcMount
	}
	if p := has.AppArmorProfile; p != nil && p.Type != corev1.AppArmorProfileTypeUnconfined {
		want.AppArmorProfile = p
	}
	if p := has.SeccompProfile; p != nil && p.Type == corev1.SeccompProfileTypeLocalhost {
		want.SeccompProfile = p
	}
	if has.Capabilities != nil {
		want.Capabilities.Drop = drops(want.Capabilities.Drop, has.Capabilities.Drop)
	}
	return ours
}

// drops are all of both, in the order of what is there if nothing of ours is missing from it.
// NET_ADMIN, which runtimes would drop after it was added, is not among them.
func drops(ours, present []corev1.Capability) []corev1.Capability {
	present = slices.DeleteFunc(slices.Clone(present), func(c corev1.Capability) bool {
		return strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_") == "NET_ADMIN"
	})
	for _, c := range ours {
		if !slices.Contains(present, c) {
			present = append(present, c)
		}
	}
	return present
}

var (
	digest = regexp.MustCompile(`^@sha256:[0-9a-f]{64}$`)
	tag    = regexp.MustCompile(`:[^/:@]*$`)
)

// pinned says whether the image is ours by a digest, with or without its tag. Ours, if it has
// a digest itself, is not changed by another.
func pinned(ours, image string) bool {
	if strings.Contains(ours, "@") {
		return false
	}
	for _, name := range []string{ours, tag.ReplaceAllString(ours, "")} {
		if rest, ok := strings.CutPrefix(image, name); ok && digest.MatchString(rest) {
			return true
		}
	}
	return false
}
