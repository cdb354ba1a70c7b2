package identity

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// ServiceAccount is what is kept of a Kubernetes ServiceAccount. Of its annotations,
// which can hold 256 KiB, that is what they say: at most 2 KB, whoever wrote them.
type ServiceAccount struct {
	Namespace, Name string
	// Role is nil if there is no role annotation, or a wrong one.
	Role *role.Role
	// Wrong is why the annotations give no role, empty if nothing is wrong with them.
	Wrong string
}

func (s *ServiceAccount) key() types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

// account is the state of a ServiceAccount that exists or that pods name.
type account struct {
	// exists is false before it is seen and after it is deleted.
	exists bool
	// role is what its annotations say. It outlives the ServiceAccount as long as
	// pods do: those that terminate are still served.
	role *role.Role
	// wrong is why its annotations give no role, empty if nothing is wrong with them.
	wrong string
	// pods is how many pods name it.
	pods int
}

func (x *Index) keepServiceAccount(s *metav1.PartialObjectMetadata) *ServiceAccount {
	kept := &ServiceAccount{Namespace: shared(s.Namespace), Name: s.Name}
	var err error
	if kept.Role, err = role.FromAnnotations(kept.Namespace, kept.Name, s.Annotations, x.defaultDuration); err != nil {
		kept.Wrong = err.Error()
	}
	return kept
}

// accountOf returns the account of that name, which is the same one until release. It
// needs mu.
func (x *Index) accountOf(key types.NamespacedName) *account {
	a := x.accounts[key]
	if a == nil {
		a = &account{}
		x.accounts[key] = a
	}
	return a
}

// setAccount takes over what the annotations say now. It needs mu.
func (x *Index) setAccount(s *ServiceAccount) {
	a := x.accountOf(s.key())
	a.exists = true
	before := a.wrong
	a.wrong = s.Wrong
	if a.wrong != "" && a.wrong != before {
		x.reportPods(a, badAnnotation(s.Name, a.wrong))
	}
	x.setRole(a, s.Role)
}

// setRole tells which role is in use now. It keeps the pointer of a role that has
// not changed: by that others know it.
func (x *Index) setRole(a *account, next *role.Role) {
	if a.role != nil && next != nil && *a.role == *next {
		return
	}
	if next != nil {
		x.roles.Want(next)
	}
	if a.role != nil {
		x.roles.Drop(a.role)
	}
	a.role = next
}

// removeAccount needs mu.
func (x *Index) removeAccount(key types.NamespacedName) {
	if a := x.accounts[key]; a != nil {
		a.exists, a.wrong = false, ""
		x.release(key)
	}
}

// release forgets an account that neither exists nor has pods. It needs mu.
func (x *Index) release(key types.NamespacedName) {
	if a := x.accounts[key]; a != nil && !a.exists && a.pods == 0 {
		x.setRole(a, nil)
		delete(x.accounts, key)
	}
}

// reportPods looks at all pods: a wrong annotation is rare, and an index of pods
// by ServiceAccount would cost memory for every pod. It needs mu.
func (x *Index) reportPods(a *account, d diagnosis.Diagnosis) {
	for _, p := range x.pods {
		if p.account == a && p.hasOwnAddresses() {
			x.observer.Record(p, d)
		}
	}
}

// badAnnotation is for all pods of the account.
func badAnnotation(account, wrong string) diagnosis.Diagnosis {
	return diagnosis.Subject{ServiceAccount: account, Why: wrong}.Refused(diagnosis.BadAnnotation)
}
