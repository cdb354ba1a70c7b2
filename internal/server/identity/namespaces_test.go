package identity

import (
	"fmt"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// In a cluster with thousands of namespaces, each with a list of its own, all lists and the change
// of one are in force at once: nothing goes through all of one for each of the other.
func TestThousandsOfNamespaces(t *testing.T) {
	const count = 5_000
	w := newWorld()
	accounts, namespaces := make([]*ServiceAccount, count), make([]*Namespace, count)
	for i := range count {
		a := serviceAccount("app", fmt.Sprint("role-", i))
		a.Namespace = fmt.Sprint("ns", i)
		accounts[i] = w.keepServiceAccount(a)
		namespaces[i] = &Namespace{Name: a.Namespace, Allowed: role.ParseAllowed(fmt.Sprint("arn:aws:iam::123456789012:role/role-", i))}
	}
	accountSink{w.Index}.Replace(accounts)
	const most = 5 * time.Second // with the race detector, on a busy machine; it took 13 to go through all
	within := func(what string, roles int, do func()) {
		t.Helper()
		start := time.Now()
		do()
		if took := time.Since(start); took > most || len(w.wanted) != roles {
			t.Errorf("%s: %d roles are fetched after %v, want %d", what, len(w.wanted), took, roles)
		}
	}
	within("before the namespaces", 0, func() {})
	within("all are listed", count, func() { namespaceSink{w.Index}.Replace(namespaces) })
	within("all are listed again", count, func() { namespaceSink{w.Index}.Replace(namespaces) })
	within("one changes", count-1, func() { namespaceSink{w.Index}.Set(&Namespace{Name: "ns7", Allowed: role.ParseAllowed("")}) })
}
