package podevents

import (
	"maps"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
)

// A ServiceAccount is told as its pods are, and has told of it forgotten when it is gone.
func TestServiceAccountsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		r.run(t)
		account := identity.AccountRef{NamespacedName: types.NamespacedName{Namespace: "ns", Name: "app"}, UID: "uid-account"}
		for range 3 {
			r.RecordAccount(account, say(diagnosis.RoleDenied, "denied"))
		}
		synctest.Wait()
		if _, told := r.told[account.UID]; len(r.store.objects) != 1 || !told {
			t.Fatalf("%v", r.store.objects)
		}
		for _, e := range r.store.objects {
			want := corev1.ObjectReference{APIVersion: "v1", Kind: "ServiceAccount", Namespace: "ns", Name: "app", UID: "uid-account"}
			if e.InvolvedObject != want || e.Count != 1 || e.Type != "Warning" || e.Namespace != "ns" {
				t.Errorf("%v", e)
			}
		}
		if r.AccountGone(account); len(r.told) > 0 {
			t.Error("not forgotten")
		}
	})
}

// What has no reason of an event, such as a ServiceAccount that was made anew, is in answers and in the log alone.
func TestWithoutAReasonThereIsNoEvent(t *testing.T) {
	r := newRecorder() // nobody writes
	r.Record(pod("p"), diagnosis.Subject{}.Refused(diagnosis.AccountGone))
	r.Record(pod("p"), diagnosis.Subject{}.Missing(diagnosis.Namespace))
	if r.failures.length != 0 || len(r.told) != 0 {
		t.Errorf("%d events, told %v", r.failures.length, r.told)
	}
}

// Another role, or another mistake in the annotations, is news at once. Of each role that
// serves there is one event, which nobody counts up.
func TestChangedAnnotationsAreNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		r.run(t)
		of := func(reason diagnosis.Reason, about string) diagnosis.Diagnosis {
			return diagnosis.Diagnosis{Reason: reason, About: about, Text: about}
		}
		for _, about := range []string{"role/a", "role/b", "role/a"} {
			for range 3 {
				for _, reason := range []diagnosis.Reason{diagnosis.Serving, diagnosis.RoleDenied} {
					r.Record(pod("p"), of(reason, about))
				}
			}
		}
		synctest.Wait()
		got := map[string]int32{}
		for _, e := range r.store.objects {
			got[e.Reason+" "+e.Message] = e.Count
		}
		want := map[string]int32{"IAMRoleServing role/a": 1, "IAMRoleServing role/b": 1, "IAMRoleDenied role/a": 3}
		if !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if r.count(t, "written") != 6 {
			t.Errorf("%d written", r.count(t, "written"))
		}
	})
}
