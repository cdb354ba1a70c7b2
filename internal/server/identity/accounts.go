package identity

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// ServiceAccount is what is kept of a Kubernetes ServiceAccount. Of its annotations,
// which can hold 256 KiB, that is what they say: at most 2 KB, whoever wrote them.
type ServiceAccount struct {
	Namespace, Name string
	UID             types.UID
	Created         time.Time
	// Role is nil if there is no role annotation, or a wrong one.
	Role *role.Role
	// Wrong is why the annotations give no role, empty if nothing is wrong with them.
	Wrong string
	// Lookalike is the key of an annotation that may have been meant for the role's, empty
	// if there is none or if there is a role.
	Lookalike string
}

// AccountRef names a ServiceAccount that exists, or has existed.
type AccountRef struct {
	types.NamespacedName
	UID types.UID
}

func (s *ServiceAccount) key() types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

// account is the state of a ServiceAccount that exists or that pods name.
type account struct {
	// exists is false before it is seen and after it is deleted.
	exists bool
	// uid and created, in seconds of Unix time, are its own, also after it is deleted.
	uid     types.UID
	created int64
	// namespace is what is known of its namespace.
	namespace *namespace
	// said is the role that its annotations name, and role is it while the namespace allows
	// it. They outlive the ServiceAccount as long as pods do: those that terminate are still
	// served.
	said, role *role.Role
	// used is the role of which it was told that it has pods, guarded by Index.changes.
	used *role.Role
	// wrong is why its annotations give no role, empty if nothing is wrong with them.
	wrong string
	// lookalike is that of the ServiceAccount.
	lookalike string
	// pods are those that name it, guarded by Index.changes and not by Index.mu.
	pods []*Pod
}

func (a *account) add(p *Pod) {
	p.place = int32(len(a.pods))
	a.pods = append(a.pods, p)
}

// remove needs no search, because an account may have all pods of a large cluster.
func (a *account) remove(p *Pod) {
	last := len(a.pods) - 1
	a.pods[p.place] = a.pods[last]
	a.pods[p.place].place = p.place
	a.pods[last] = nil
	if a.pods = a.pods[:last]; last == 0 {
		a.pods = nil
	}
}

func (x *Index) keepServiceAccount(s *metav1.PartialObjectMetadata) *ServiceAccount {
	kept := &ServiceAccount{Namespace: shared(s.Namespace), Name: s.Name, UID: s.UID, Created: s.CreationTimestamp.Time}
	var err error
	if kept.Role, err = role.FromAnnotations(kept.Namespace, kept.Name, s.Annotations, x.sessions); err != nil {
		kept.Wrong = err.Error()
	} else if kept.Role == nil {
		kept.Lookalike = shared(role.Lookalike(s.Annotations))
	}
	return kept
}

// accountOf returns the account of that name, which is the same one until release. It
// needs changes.
func (x *Index) accountOf(key types.NamespacedName) *account {
	a := x.accounts[key]
	if a == nil {
		a = &account{namespace: x.namespaceOf(key.Namespace)}
		a.namespace.accounts++
		x.accounts[key] = a
	}
	return a
}

// setAccount takes over what the annotations say now. It needs changes.
func (x *Index) setAccount(s *ServiceAccount) {
	a := x.accountOf(s.key())
	news := s.Wrong != "" && s.Wrong != a.wrong
	before, said, ref := a.role, a.said, AccountRef{s.key(), s.UID}
	if a.uid != s.UID {
		if a.exists { // another one of the same name
			x.observer.AccountGone(AccountRef{s.key(), a.uid})
		}
		x.publish(func() { a.uid, a.created = s.UID, s.Created.Unix() })
	}
	x.publish(func() { a.lookalike = s.Lookalike })
	x.publishAccount(a, true, s.Role, s.Wrong)
	if news {
		x.observer.RecordAccount(ref, badAnnotation(s.Name, s.Wrong))
		x.reportPods(a, badAnnotation(s.Name, s.Wrong))
	}
	if a.said != said {
		x.reportNotAllowed(s.key(), a)
	}
	if a.role != nil && a.role != before {
		for _, p := range a.pods {
			x.reportHostNetwork(p)
		}
	}
}

// reportHostNetwork tells a pod that it gets nothing of the role of its account, if that is
// because of its network and it has no token. It needs changes.
func (x *Index) reportHostNetwork(p *Pod) {
	if r := p.account.role; p.HostNetwork && !p.Static && !p.Ended && p.account.exists && r != nil && !p.account.namespace.tokens {
		x.observer.Record(p, diagnosis.Subject{ServiceAccount: p.ServiceAccount, Role: r}.OnHostNetwork())
	}
}

// publishAccount tells which role is in use now: before the first request can ask for
// it, and that the other one is not after the last. It keeps the pointer of a role that
// has not changed: by that others know it. It needs changes.
func (x *Index) publishAccount(a *account, exists bool, said *role.Role, wrong string) {
	if said != nil && a.said != nil && *said == *a.said {
		said = a.said
	}
	before, next := a.role, said
	if next != nil && !x.allows(a.namespace, next) {
		next = nil
	}
	if next != nil && next != before {
		x.roles.Want(next)
	}
	x.publish(func() { a.exists, a.said, a.role, a.wrong = exists, said, next, wrong })
	if before != nil && next != before {
		x.roles.Drop(before)
	}
	x.use(a)
}

// use tells that a role has pods, once. It needs changes.
func (x *Index) use(a *account) {
	if a.role != nil && a.role != a.used && len(a.pods) > 0 {
		a.used = a.role
		x.roles.Use(a.role)
	}
}

// removeAccount needs changes.
func (x *Index) removeAccount(key types.NamespacedName) {
	if a := x.accounts[key]; a != nil {
		if a.exists {
			x.observer.AccountGone(AccountRef{key, a.uid})
		}
		x.publishAccount(a, false, a.said, "")
		x.release(key)
	}
}

// release forgets an account that neither exists nor has pods. It needs changes.
func (x *Index) release(key types.NamespacedName) {
	if a := x.accounts[key]; a != nil && !a.exists && len(a.pods) == 0 {
		x.publishAccount(a, false, nil, "")
		delete(x.accounts, key)
		a.namespace.accounts--
		x.releaseNamespace(key.Namespace)
	}
}

// reportPods needs changes.
func (x *Index) reportPods(a *account, d diagnosis.Diagnosis) {
	for _, p := range a.pods {
		if p.hasOwnAddresses() {
			x.observer.Record(p, d)
		}
	}
}

// badAnnotation is for all pods of the account.
func badAnnotation(account, wrong string) diagnosis.Diagnosis {
	return diagnosis.Subject{ServiceAccount: account, Why: wrong}.Refused(diagnosis.BadAnnotation)
}

// Refused tells a ServiceAccount that STS refuses its role. With the role, of which the pointer
// has to be that of Roles.Want, comes what STS said.
func (x *Index) Refused(r *role.Role, why string, retry time.Time) {
	x.changes.Lock()
	defer x.changes.Unlock()
	key := types.NamespacedName{Namespace: r.Namespace, Name: r.ServiceAccount}
	if a := x.accounts[key]; a != nil && a.exists && a.role == r {
		x.observer.RecordAccount(AccountRef{key, a.uid},
			diagnosis.Subject{ServiceAccount: r.ServiceAccount, Role: r, Why: why, Retry: retry}.Refused(diagnosis.Denied))
	}
}
