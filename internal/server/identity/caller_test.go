package identity

import (
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
)

// What to wait for and what to say follow from the Caller alone.
func TestCallerNamesItsKeysAndSubject(t *testing.T) {
	const ip = "10.0.0.1"
	address, key := netip.MustParseAddr(ip), types.NamespacedName{Namespace: "ns", Name: "a"}
	w := newWorld()
	check := func(what string, keys []any, subject diagnosis.Subject) {
		t.Helper()
		c := w.Lookup(from(ip))
		if got := c.Keys(); !slices.Equal(got, keys) {
			t.Errorf("%s: keys %v, want %v", what, got, keys)
		}
		if got := c.Subject(); got != subject {
			t.Errorf("%s: %+v, want %+v", what, got, subject)
		}
	}
	check("nobody", []any{address}, diagnosis.Subject{Address: address})
	w.setPod(pod("a", ip))
	known := diagnosis.Subject{Address: address, Pod: "ns/a", ServiceAccount: "a"}
	check("a pod", []any{address, key}, known)
	w.setAccount(serviceAccount("a", "white space"))
	wrong := known
	wrong.Why = `annotation iam.amazonaws.com/roleArn has the value "arn:aws:iam::123456789012:role/white space", want the ARN of an IAM role, such as arn:aws:iam::123456789012:role/NAME`
	check("a wrong annotation", []any{address, key}, wrong)
	w.setAccount(serviceAccount("a", "one"))
	known.Role = w.Lookup(from(ip)).Role
	check("a role", []any{address, key}, known)
	if known.Role == nil || known.Role.Name() != "one" {
		t.Errorf("role %v", known.Role)
	}
	w.setPod(pod("b", ip))
	check("two pods", []any{address}, diagnosis.Subject{Address: address})
}
