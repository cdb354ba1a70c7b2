package docs

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Each field of a container is decided upon, those of later versions of Kubernetes too.
func TestWhatAdmissionMayChangeHasEveryField(t *testing.T) {
	_, section, _ := strings.Cut(Text(t, "webhook.md"), "\n## What admission may change\n")
	section, _, _ = strings.Cut(section, "\n## ")
	documented := func(of reflect.Type) {
		for field := range of.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name == "name" || name == "securityContext" || name == "capabilities" {
				continue
			}
			if !strings.Contains(section, "`"+name+"`") && !strings.Contains(section, "."+name+"`") {
				t.Errorf("%s of %s is not in it", name, of.Name())
			}
		}
	}
	documented(reflect.TypeFor[corev1.Container]())
	documented(reflect.TypeFor[corev1.SecurityContext]())
}
