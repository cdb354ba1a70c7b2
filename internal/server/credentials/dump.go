package credentials

import (
	"cmp"
	"slices"
	"time"
)

// RoleState is a role in a dump. It holds no secret.
type RoleState struct {
	Namespace, ServiceAccount string
	ARN, SessionName          string
	ExternalID                string `json:",omitempty"`
	// Duration is that of the session, such as 1h0m0s.
	Duration    string
	State       string
	AccessKeyID string     `json:",omitempty"`
	Expiration  *time.Time `json:",omitempty"`
	NextAttempt time.Time
	Failures    int    `json:",omitempty"`
	Failure     string `json:",omitempty"`
}

// Dump lists the wanted roles by session name. State is that of iam4kube_roles.
func (c *Cache) Dump() []RoleState {
	now := time.Now()
	c.planning.Lock()
	defer c.planning.Unlock()
	states := make([]RoleState, 0, len(c.entries))
	for _, e := range c.entries {
		r := e.role
		state := RoleState{
			Namespace: r.Namespace, ServiceAccount: r.ServiceAccount, ARN: r.ARN, SessionName: r.SessionName, ExternalID: r.ExternalID,
			Duration: r.Duration.String(), State: e.state(now), NextAttempt: e.due, Failures: e.failures,
		}
		if e.issued != nil {
			state.AccessKeyID, state.Expiration = e.issued.AccessKeyID, &e.issued.Expiration
		}
		if e.failure != nil {
			state.Failure = e.failure.Error()
		}
		states = append(states, state)
	}
	slices.SortFunc(states, func(a, b RoleState) int {
		return cmp.Or(cmp.Compare(a.SessionName, b.SessionName), cmp.Compare(a.ARN, b.ARN))
	})
	return states
}
