// Package diagnosis says what is missing, why, and what to do about it. It owns the
// names of pieces, refusals and event reasons, and the texts that users read in
// answers, events and logs. It does not find out what is missing, nor does it know
// the protocols by which it is told.
package diagnosis

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Piece names what a request is still missing. Answers, events, metrics and logs
// all use these names.
type Piece string

// Pieces in the order in which a request finds them.
const (
	TokenKeys      Piece = "token-keys"      // the key of the caller's token is not known
	Pod            Piece = "pod"             // no pod is known on the source address, or that of the token is not
	SinglePod      Piece = "single-pod"      // more than one live pod claims it
	Namespace      Piece = "namespace"       // the pod's namespace is not known
	ServiceAccount Piece = "service-account" // the pod's ServiceAccount is not known
	RoleAnnotation Piece = "role-annotation" // the ServiceAccount names no role
	Credentials    Piece = "credentials"     // STS has not answered for the role
)

// Pieces lists every Piece.
var Pieces = []Piece{TokenKeys, Pod, SinglePod, Namespace, ServiceAccount, RoleAnnotation, Credentials}

// Refusal names why a request gets nothing, whatever may appear.
type Refusal string

const (
	// Stale: the server has not heard from the API server for so long that it cannot know
	// who has the address.
	Stale Refusal = "stale"
	// NodeAddress: the source address is a node's, that of a hostNetwork pod or of a
	// pod whose traffic is masqueraded on its way. Whose request it is cannot be told.
	NodeAddress Refusal = "node-address"
	// BadToken: the token proves nothing.
	BadToken Refusal = "bad-token"
	// TokenRequired: pods of the namespace are known by tokens alone.
	TokenRequired Refusal = "token-required"
	// PodGone, AccountGone: the token's pod or ServiceAccount does not live any more.
	PodGone     Refusal = "pod-gone"
	AccountGone Refusal = "service-account-gone"
	// OtherPod: the token came from the address of another pod.
	OtherPod Refusal = "other-pod"
	// BadAnnotation: what the ServiceAccount's annotations say is wrong.
	BadAnnotation Refusal = "bad-annotation"
	// NotAllowed: the ServiceAccount's namespace may not have the role.
	NotAllowed Refusal = "not-allowed"
	// Denied: STS does not give the role.
	Denied Refusal = "denied"
)

// Reason is an Event's reason.
type Reason string

// Reasons of events. Serving is of type Normal, the others are Warnings.
const (
	Serving                Reason = "IAMRoleServing"
	AnnotationInvalid      Reason = "IAMRoleAnnotationInvalid"
	RoleMissing            Reason = "IAMRoleMissing"
	RoleDenied             Reason = "IAMRoleDenied"
	CredentialsUnavailable Reason = "IAMCredentialsUnavailable"
	AccountMissing         Reason = "IAMServiceAccountMissing"
	AddressAmbiguous       Reason = "IAMPodAddressAmbiguous"
	TokenMissing           Reason = "IAMPodTokenMissing"
	RoleNotAllowed         Reason = "IAMRoleNotAllowed"
	HostNetwork            Reason = "IAMRoleHostNetwork"
	// IssuerUnpublished is on the server's own pods.
	IssuerUnpublished Reason = "IAMIssuerUnpublished"
)

// Reasons lists every Reason.
var Reasons = []Reason{Serving, AnnotationInvalid, RoleMissing, RoleDenied, CredentialsUnavailable, AccountMissing, AddressAmbiguous, TokenMissing, RoleNotAllowed, HostNetwork, IssuerUnpublished}

// Subject is whom a Diagnosis is about, as far as he is known.
type Subject struct {
	Address netip.Addr
	// ByToken is that Pod and ServiceAccount are known by a token, and not by Address.
	ByToken bool
	// Pod is NAMESPACE/NAME, empty where no request is meant but all pods of the
	// ServiceAccount, which is its name alone.
	Pod, ServiceAccount string
	Role                *role.Role
	// Why is what others said: STS when it last failed, empty if it has not, or what is
	// wrong with the annotations.
	Why string
	// Lookalike is the key of an annotation that may have been meant for the missing one.
	Lookalike string
	// Retry is when STS is asked again.
	Retry time.Time
}

// Diagnosis is what there is to say of a Subject. Missing and Refusal are both empty if
// he is served, else one of them is.
type Diagnosis struct {
	Missing Piece
	Refusal Refusal
	// Reason is that of the event on the pod, empty where no pod can be told.
	Reason Reason
	// About is what the annotations said, a role's ARN or something wrong: with another one
	// the same Reason is news.
	About string
	// Text is the cause and what to do.
	Text string
}

// Missing says that the piece has not appeared.
func (s Subject) Missing(piece Piece) Diagnosis {
	d := Diagnosis{Missing: piece}
	switch piece {
	case TokenKeys:
		d.Text = fmt.Sprintf("missing token-keys: the token's signature cannot be verified (source address %s): %s. The server keeps asking.", s.Address, s.Why)
	case Pod:
		if s.ByToken {
			d.Text = fmt.Sprintf("missing pod: pod %s, to which the token is bound, is not known with the UID in the token (source address %s). If it was deleted, its token is of no use any more.", s.Pod, s.Address)
			break
		}
		d.Text = fmt.Sprintf("missing pod: no running pod is known on source address %s. If that is not the pod's address (status.podIPs), its traffic is masqueraded (SNAT) on its way: exclude the metadata address from that.", s.Address)
	case SinglePod:
		d.Reason = AddressAmbiguous
		d.Text = fmt.Sprintf("missing single-pod: more than one live pod claims source address %s, so the request is nobody's. It is served as soon as one of them is left.", s.Address)
	case Namespace:
		d.Text = fmt.Sprintf("missing namespace: the namespace of pod %s (source address %s) is not known yet, so not whether its pods need tokens.", s.Pod, s.Address)
	case ServiceAccount:
		d.Reason = AccountMissing
		if s.ByToken {
			d.Text = fmt.Sprintf("missing service-account: ServiceAccount %s of pod %s does not exist with the UID in the token (source address %s). If it was made anew, so has to be the pod.", s.ServiceAccount, s.Pod, s.Address)
			break
		}
		d.Text = fmt.Sprintf("missing service-account: ServiceAccount %s of pod %s (source address %s) does not exist. Create it with the annotation %s.", s.ServiceAccount, s.Pod, s.Address, role.AnnotationARN)
	case RoleAnnotation:
		d.Reason = RoleMissing
		d.Text = fmt.Sprintf("missing role-annotation: ServiceAccount %s of pod %s (source address %s) has no annotation %s. Add it if the pod needs an IAM role; no restart is needed.", s.ServiceAccount, s.Pod, s.Address, role.AnnotationARN)
		if s.Lookalike != "" {
			d.About = s.Lookalike
			d.Text += fmt.Sprintf(" There is an annotation %s, which is not read: the name, on the ServiceAccount, has to be exactly the one above.", s.Lookalike)
		}
	case Credentials:
		d.Reason, d.About = CredentialsUnavailable, s.Role.ARN
		why := s.Why
		if why == "" {
			why = "STS has not answered yet"
		}
		d.Text = fmt.Sprintf("missing credentials: no credentials yet for %s of pod %s (source address %s): %s. The server keeps trying.", s.Role.ARN, s.Pod, s.Address, why)
	}
	return d
}

// Refused says why the subject gets nothing.
func (s Subject) Refused(refusal Refusal) Diagnosis {
	d := Diagnosis{Refusal: refusal}
	switch refusal {
	case Stale:
		d.Text = fmt.Sprintf("stale: this server has heard nothing from the API server for longer than --max-staleness, so source address %s may have another owner than it knows. It answers again as soon as it hears.", s.Address)
	case NodeAddress:
		d.Text = fmt.Sprintf("source address %s is a node's, so no pod can be told from it. Pods with hostNetwork cannot be served; for others, traffic to the metadata address is masqueraded (SNAT) on its way: exclude it.", s.Address)
	case BadToken:
		d.Text = fmt.Sprintf("the token in the header Authorization is refused: %s (source address %s).", s.Why, s.Address)
	case TokenRequired:
		d.Reason = TokenMissing
		d.Text = fmt.Sprintf("the namespace of pod %s (source address %s) has the label iam4kube.io/identity: token, so its pods get credentials by their tokens alone, from /v1/credentials. See docs/tokens.md.", s.Pod, s.Address)
	case PodGone:
		d.Text = fmt.Sprintf("pod %s, to which the token is bound, has ended or was replaced by another of the same name (source address %s). The new pod has a token of its own.", s.Pod, s.Address)
	case AccountGone:
		d.Text = fmt.Sprintf("ServiceAccount %s of pod %s was made anew after the token (source address %s). Restart the pod.", s.ServiceAccount, s.Pod, s.Address)
	case OtherPod:
		d.Text = fmt.Sprintf("the token is that of pod %s, and the source address %s is another pod's. Only ServiceAccounts named by --token-forwarder may hand in the tokens of others.", s.Pod, s.Address)
	case NotAllowed:
		d.Reason = RoleNotAllowed
		d.Text = fmt.Sprintf("not-allowed: the namespace of ServiceAccount %s may not have the role %s: %s. Whoever administers the cluster can allow it there.", s.ServiceAccount, s.Role.ARN, s.Why)
	case BadAnnotation:
		d.Reason, d.About = AnnotationInvalid, s.Why
		d.Text = fmt.Sprintf("ServiceAccount %s of pod %s gives no IAM role: %s. Correct the annotation; no restart is needed.", s.ServiceAccount, s.Pod, s.Why)
		if s.Pod == "" {
			d.Text = fmt.Sprintf("ServiceAccount %s gives no IAM role: %s. Correct the annotation; no restart is needed.", s.ServiceAccount, s.Why)
		}
	case Denied:
		d.Reason, d.About = RoleDenied, s.Role.ARN
		whom := s.ServiceAccount
		if s.Pod != "" {
			whom += " of pod " + s.Pod
		}
		d.Text = fmt.Sprintf("STS refuses the role %s to ServiceAccount %s (session name %s, external ID %s, %d s): %s. Check the role's trust policy and the annotations. The next attempt is at %s; a change of these annotations starts one at once.",
			s.Role.ARN, whom, s.Role.SessionName, externalID(s.Role), s.Role.Duration/time.Second, s.Why, s.Retry.UTC().Format(time.RFC3339))
	}
	return d
}

// externalID is what was sent to STS, cut where it would leave no room for the rest. AWS does
// not treat it as a secret: whoever may read the role can read it.
func externalID(r *role.Role) string {
	const most = 128
	switch id := r.ExternalID; {
	case id == "":
		return "none"
	case len(id) > most:
		return fmt.Sprintf("%s... (%d bytes)", id[:most], len(id))
	default:
		return id
	}
}

// Served says that the subject gets credentials.
func (s Subject) Served() Diagnosis {
	return Diagnosis{Reason: Serving, About: s.Role.ARN, Text: "The pod gets credentials of " + s.Role.ARN + " (session name " + s.Role.SessionName + ")."}
}

// OnHostNetwork says that the subject is a pod which has its node's addresses, and so gets
// nothing of the role that its ServiceAccount names.
func (s Subject) OnHostNetwork() Diagnosis {
	return Diagnosis{
		Refusal: NodeAddress, Reason: HostNetwork, About: s.Role.ARN,
		Text: fmt.Sprintf("The pod uses hostNetwork and gets no credentials of %s, which ServiceAccount %s names, unless it has a token: its requests come from its node's address and reach whatever the node reaches, perhaps the node's own role. Take hostNetwork from the pod, or let it prove itself by a token (namespace label iam4kube.io/token: enabled).", s.Role.ARN, s.ServiceAccount),
	}
}

// Unpublished says, of the server itself, that its issuer's URL does not serve what AWS needs.
func Unpublished(problem string) Diagnosis {
	return Diagnosis{
		Reason: IssuerUnpublished, About: problem,
		Text: fmt.Sprintf("AWS will refuse the server's tokens: %s. Publish what server issuer prints.", problem),
	}
}
