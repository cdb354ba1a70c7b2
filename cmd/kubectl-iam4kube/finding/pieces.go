package finding

// Piece is something that can be broken and that no server can see.
type Piece struct {
	// Name is what scripts look for.
	Name string
	// Remedy says what to do.
	Remedy string
	// docs is the page, below docs/.
	docs string
}

// Pieces of a pod's way to its credentials, of `why`.
var (
	NoPod = Piece{
		"no-pod", "Look at the pod's name and namespace, and at the events FailedCreate of its ReplicaSet, StatefulSet or Job.",
		"troubleshooting.md#three-steps",
	}
	NotCreated = Piece{
		"not-created", "The text says who refuses it: Pod Security and NET_ADMIN, the webhook (`kubectl iam4kube check`), or an admission policy.",
		"troubleshooting.md#wrong-set-ups",
	}
	PodEnded = Piece{
		"pod-ended", "A pod whose containers have ended gets nothing more. Ask about the one that runs now.",
		"server.md#who-is-asking",
	}
	PodPending = Piece{
		"pod-pending", "Nothing of iam4kube is concerned until the pod is on a node.",
		"troubleshooting.md#symptoms",
	}
	NamespaceLabel = Piece{
		"namespace-label", "Correct the label's value: any other than the documented ones does not do what it says.",
		"webhook.md#opting-in-and-out",
	}
	NotInjected = Piece{
		"not-injected", "Restart the pod if it is older than the label of its namespace. If it is younger, `kubectl iam4kube check` looks at the webhook.",
		"webhook.md#opting-in-and-out",
	}
	NotRouted = Piece{
		"not-routed", "Let ip2service run, ready, on the pod's node, or label the namespace iam4kube.io/inject: enabled and restart the pod.",
		"routing.md#when-something-is-missing",
	}
	ServerNode = Piece{
		"server-node", "Pods on the nodes of the server are not routed node-wide: run the pod on another node, or opt its namespace in to injection.",
		"install.md#3-nodes",
	}
	NotFirst = Piece{
		"not-first", "Another init container runs before that of iam4kube and may reach the node's metadata service: look at other webhooks.",
		"webhook.md#what-to-know",
	}
	OldAddress = Piece{
		"old-address", "Restart the pod, or give the Service its old address again.",
		"troubleshooting.md#pods-with-an-old-address",
	}
	InitImage = Piece{
		"init-image", "See that the node can pull the image of --init-image, with pull secrets of the pod's namespace.",
		"webhook.md#what-to-know",
	}
	InitFailed = Piece{
		"init-failed", "The init container says why the way to the server does not work.",
		"troubleshooting.md#the-init-container-and-ip2service",
	}
	InitRunning = Piece{
		"init-running", "The init container has not found a way to the server yet: see its log, `kubectl logs -c iam4kube-ip2service`.",
		"troubleshooting.md#the-init-container-and-ip2service",
	}
	NoToken = Piece{
		"no-token", "Restart the pod if it is older than the label iam4kube.io/token of its namespace. If it is younger, `kubectl iam4kube check` looks at the webhook.",
		"tokens.md#turning-it-on",
	}
	OwnCredentials = Piece{
		"own-credentials", "Take the variable from the container if it is to have the role of its ServiceAccount.",
		"troubleshooting.md#symptoms",
	}
	NotAsked = Piece{
		"not-asked", "See what the client says, and whether it asks at all.",
		"troubleshooting.md#symptoms",
	}
)

// Pieces of a set-up, of `check`.
var (
	NoAPI = Piece{
		"no-api", "Look at the kubeconfig and at the way to the API server.",
		"kubectl.md#check",
	}
	OldKubernetes = Piece{
		"old-kubernetes", "Update Kubernetes: older versions than 1.31 are not tested.",
		"install.md#installation",
	}
	NoNamespace = Piece{
		"no-namespace", "Apply manifests/namespace, or name the namespace by --iam4kube-namespace.",
		"install.md#6-apply",
	}
	NoAccount = Piece{
		"no-account", "Apply the manifest again.",
		"install.md#6-apply",
	}
	Rights = Piece{
		"rights", "Apply the manifest again: without these rights the program is not told what it needs.",
		"server.md#permissions",
	}
	NoService = Piece{
		"no-service", "Apply manifests/namespace. Injected pods keep the address that the Service had: give it the old one, or restart them.",
		"operations.md#backups",
	}
	Headless = Piece{
		"headless", "Delete the Service, apply manifests/namespace, and restart injected pods.",
		"webhook.md#when-a-pod-is-denied",
	}
	ServicePort = Piece{
		"service-port", "Apply manifests/namespace: ip2service and the webhook look for the port by its name.",
		"webhook.md#when-a-pod-is-denied",
	}
	ServiceSelector = Piece{
		"service-selector", "Apply manifests/namespace, or give the selector the labels of the server's pods.",
		"install.md#6-apply",
	}
	NoWebhook = Piece{
		"no-webhook", "Apply your overlay, or remove the MutatingWebhookConfiguration and the labels if nothing is to be injected.",
		"operations.md#when-the-webhook-is-down",
	}
	NoTokens = Piece{
		"no-tokens", "Add the component token to your overlay, or remove the label where pods bring their tokens themselves.",
		"tokens.md#turning-it-on",
	}
	WebhookNotReady = Piece{
		"webhook-not-ready", "While no replica is ready, no pod starts in namespaces that opted in.",
		"operations.md#when-the-webhook-is-down",
	}
	NoConfiguration = Piece{
		"no-configuration", "Apply your overlay.",
		"install.md#6-apply",
	}
	FailurePolicy = Piece{
		"failure-policy", "Set failurePolicy: Fail, as in manifests/.",
		"webhook.md#opting-in-and-out",
	}
	Selector = Piece{
		"selector", "Apply your overlay: the namespaceSelector keeps the webhook from namespaces that have not opted in.",
		"webhook.md#opting-in-and-out",
	}
	NoWebhookService = Piece{
		"no-webhook-service", "Apply your overlay.",
		"install.md#6-apply",
	}
	NoPolicy = Piece{
		"no-policy", "Apply your overlay, if you have not left the policy out on purpose.",
		"security.md#what-to-do",
	}
	NoObject = Piece{
		"no-object", "Apply your overlay, if you have not left it out on purpose: all works without it, until nodes are drained, a certificate is renewed or somebody reaches for the metrics.",
		"install.md#6-apply",
	}
	Unbound = Piece{
		"unbound-policy", "Apply your overlay: a policy without a binding decides nothing.",
		"security.md#what-to-do",
	}
	PolicyImage = Piece{
		"policy-image", "Give the policy's variable images the image of the webhook's --init-image: the transformer init-image does both.",
		"install.md#5-your-overlay",
	}
	NoCABundle = Piece{
		"no-ca-bundle", "cert-manager's cainjector writes it: see that it runs, and that the configuration has the annotation cert-manager.io/inject-ca-from.",
		"webhook.md#certificates",
	}
	CAExpired = Piece{
		"ca-expired", "cert-manager renews it: look at Certificate iam4kube-webhook-ca and at cainjector.",
		"webhook.md#certificates",
	}
	NoCertificate = Piece{
		"no-certificate", "Apply your overlay; cert-manager has to be installed.",
		"webhook.md#certificates",
	}
	CertificateNotReady = Piece{
		"certificate-not-ready", "Look at the CertificateRequests of the namespace and at cert-manager's log.",
		"webhook.md#certificates",
	}
	Untrusted = Piece{
		"certificate-untrusted", "The caBundle is not of the CA that signed it: look at cert-manager's cainjector.",
		"webhook.md#certificates",
	}
	Expiring = Piece{
		"certificate-expiring", "cert-manager renews it 30 days before: look at Certificate iam4kube-webhook.",
		"webhook.md#certificates",
	}
	NoServer = Piece{
		"no-server", "Apply your overlay, or scale the Deployment.",
		"install.md#6-apply",
	}
	ServerNotReady = Piece{
		"server-not-ready", "Look at why its pods are not ready; nodes for them need label and taint.",
		"troubleshooting.md#the-servers-start-and-readiness",
	}
	NotSynced = Piece{
		"not-synced", "Look at the server's rights and its way to the API server.",
		"troubleshooting.md#the-servers-start-and-readiness",
	}
	Stale = Piece{
		"stale-server", "Bring the API server back, or the way to it.",
		"server.md#without-the-api-server",
	}
	CutOff = Piece{
		"cut-off", "Look at the network of its node.",
		"server.md#without-the-api-server",
	}
	Identity = Piece{
		"aws-identity", "Repair the servers' own AWS credentials. Pods keep what they have until it expires.",
		"install.md#1-the-servers-identity",
	}
	TokenKey = Piece{
		"token-key", "Put 32 to 1,024 random bytes into the Secret iam4kube-token-key.",
		"server.md#imdsv2-tokens-and-their-key",
	}
	Ambiguous = Piece{
		"ambiguous-address", "Look at the network plugin's address management: requests from such an address are refused.",
		"troubleshooting.md#answers-and-events",
	}
	RolesDenied = Piece{
		"roles-denied", "Compare trust policies with the session names: `kubectl iam4kube trust NAMESPACE/NAME` prints what is needed.",
		"install.md#2-roles-for-workloads",
	}
	Throttled = Piece{
		"throttled", "Raise the account's quota, or lower --sts-rate-limit or the number of replicas.",
		"server.md#capacity",
	}
	AnnotationsWrong = Piece{
		"annotations-wrong", "Events IAMRoleAnnotationInvalid name the ServiceAccounts.",
		"server.md#annotations",
	}
	RolesNotAllowed = Piece{
		"roles-not-allowed", "Events IAMRoleNotAllowed name ServiceAccounts and roles.",
		"server.md#which-roles-a-namespace-may-have",
	}
	NoRouting = Piece{
		"no-routing", "Apply one of the overlays node-wide, injection and both. With injection, label namespaces of tokens iam4kube.io/inject=enabled, too.",
		"install.md#5-your-overlay",
	}
	Tainted = Piece{
		"tainted-node", "ip2service takes the taint off when it is ready and has the right: look at its log.",
		"routing.md#new-nodes",
	}
	Versions = Piece{
		"mixed-versions", "Wait for the roll-out, or look why it does not go on.",
		"operations.md#upgrades",
	}
	Skew = Piece{
		"version-skew", "Use the plugin of the servers' version if something looks odd: what it does not know it cannot see.",
		"kubectl.md#versions",
	}
	Disagree = Piece{
		"replicas-disagree", "Look again in a minute. If it stays, requests are answered differently by chance: compare the pods' flags, versions and AWS identity.",
		"troubleshooting.md#symptoms",
	}
	Unpublished = Piece{
		"issuer-unpublished", "Publish both documents below the issuer's URL: AWS reads them there.",
		"install.md#without-an-aws-key",
	}
)

// Pieces lists those of `why` and of `check`.
var Pieces = []Piece{
	NoPod, NotCreated, PodEnded, PodPending, NamespaceLabel, NotInjected, NotRouted, ServerNode, NotFirst, OldAddress, InitImage, InitFailed, InitRunning,
	NoToken, OwnCredentials, NotAsked,
	NoAPI, OldKubernetes, NoNamespace, NoAccount, Rights, NoService, Headless, ServicePort, ServiceSelector, NoWebhook, NoTokens, WebhookNotReady,
	NoConfiguration, FailurePolicy, Selector, NoWebhookService, NoPolicy, NoObject, Unbound, PolicyImage, NoCABundle, CAExpired, NoCertificate,
	CertificateNotReady, Untrusted, Expiring, NoServer, ServerNotReady, NotSynced, Stale, CutOff, Identity, TokenKey, Ambiguous, RolesDenied,
	Throttled, AnnotationsWrong, RolesNotAllowed, NoRouting, Tainted, Versions, Skew, Disagree, Unpublished,
}

// Page is the page of docs/ that the link leads to, with the anchor.
func (p Piece) Page() string { return p.docs }
