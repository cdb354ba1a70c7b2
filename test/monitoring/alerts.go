// Package monitoring has the alerts and the dashboard in one table, and makes of it what is in
// observability/ and the tables of docs/. Its tests see each alert fire where its cause is
// made, and where it is simulated, and none in an hour in which all is well.
package monitoring

// Program is whose metrics an alert or a panel reads.
type Program string

// Programs.
const (
	Server     Program = "server"
	Webhook    Program = "webhook"
	IP2service Program = "ip2service"
)

// page of docs/ has the program's alerts.
func (p Program) page() string {
	return map[Program]string{Server: "observability.md", Webhook: "webhook.md", IP2service: "routing.md"}[p]
}

// Alert is a row of the table.
type Alert struct {
	Program Program
	Name    string
	// Severity is critical, where pods are or soon will be without credentials, or warning.
	Severity string
	// What is wrong, for people; Do is what to do, in Markdown.
	What, Expr, For, Do string
	// Cause is what differs from Healthy in the simulation, and Also the names of other alerts
	// that the same cause rightly raises.
	Cause Series
	Also  []string
}

const (
	critical = "critical"
	warning  = "warning"
)

// Series are time series in the notation of promtool's unit tests, one value a minute: what is
// before the braces and in them, and the values.
type Series map[string]string

// Alerts is the table.
var Alerts = []Alert{
	{
		Server, "IAM4KubeServerAbsent", critical, "No server is scraped",
		`absent(iam4kube_roles)`, "5m",
		"`kubectl -n iam4kube get pods`. If they run: does Prometheus reach them, see [What to watch](operations.md#what-to-watch)",
		Series{`iam4kube_roles{pod="s-0",state="valid"}`: "10x20 _x50", `iam4kube_roles{pod="s-0",state="denied"}`: "0x20 _x50"},
		nil,
	},
	{
		Server, "IAM4KubeCredentialsExpire", critical, "Credentials are about to expire: refreshes fail",
		`iam4kube_credentials_soonest_expiration_timestamp_seconds > 0 and iam4kube_credentials_soonest_expiration_timestamp_seconds - time() < 600`, "1m",
		"Look at `iam4kube_sts_attempts_total` by outcome and at the log lines `could not assume role`",
		Series{`iam4kube_credentials_soonest_expiration_timestamp_seconds{pod="s-0"}`: "4100x70"},
		nil,
	},
	{
		Server, "IAM4KubeIdentityRefused", critical, "STS refuses the server itself",
		`iam4kube_sts_identity_refused == 1`, "1m",
		"Repair the server's own AWS identity; the log line `STS refuses the server's own credentials` has the cause. Pods keep what they have until it expires",
		Series{`iam4kube_sts_identity_refused{pod="s-0"}`: "0x20 1x50"},
		nil,
	},
	{
		Server, "IAM4KubeRolesFail", warning, "Roles have failed for long",
		`sum by (namespace, pod) (iam4kube_roles{state=~"denied|throttled|identity|unavailable|valid-failing"}) > 0`, "30m",
		"Events on the pods and `could not assume role` in the log name role and reason",
		Series{`iam4kube_roles{pod="s-0",state="denied"}`: "0x20 2x50"},
		nil,
	},
	{
		Server, "IAM4KubeSTSThrottles", warning, "STS throttles",
		`sum by (namespace, pod) (rate(iam4kube_sts_attempts_total{outcome="throttled"}[10m])) > 0`, "10m",
		"Raise the quota of the account, or lower `--sts-rate-limit` or the number of replicas",
		Series{`iam4kube_sts_attempts_total{pod="s-0",outcome="throttled"}`: "0x20 1+3x50"},
		nil,
	},
	{
		Server, "IAM4KubeSTSRateTooSmall", warning, "The rate is too small for the number of roles",
		`sum by (namespace, pod) (iam4kube_sts_queue_length{class="close-to-expiry"}) > 0`, "5m",
		"Raise `--sts-rate-limit`, see [Capacity](server.md#capacity)",
		Series{`iam4kube_sts_queue_length{pod="s-0",class="close-to-expiry"}`: "0x20 40x50"},
		nil,
	},
	{
		Server, "IAM4KubeWatchBroken", warning, "A watch is broken (any of the three programs)",
		`time() - iam4kube_watch_last_event_timestamp_seconds > 180`, "1m",
		"Look at the lines of client-go in the log (`\"library\":\"client-go\"`) and at the API server. New pods are not seen",
		Series{`iam4kube_watch_last_event_timestamp_seconds{pod="s-0",resource="pods"}`: "0+60x20 1200x50"},
		nil,
	},
	{
		Server, "IAM4KubeReplicaCutOff", warning, "A replica is cut off from the API server",
		`iam4kube_cut_off == 1`, "0m",
		"The network of its node; the others serve",
		Series{`iam4kube_cut_off{pod="s-0"}`: "0x20 1x50"},
		nil,
	},
	{
		Server, "IAM4KubeStale", critical, "Requests are refused because what is known is too old (server and ip2service)",
		`iam4kube_stale == 1`, "0m",
		"Bring the API server back, or the way from the node to it. `--max-staleness` is the limit",
		Series{`iam4kube_stale{pod="s-0"}`: "0x20 1x50"},
		nil,
	},
	{
		Server, "IAM4KubeRequestsWaitInVain", warning, "Requests wait in vain",
		`sum by (missing) (rate(iam4kube_wait_duration_seconds_count{outcome=~"timeout|client-gone"}[10m])) > 0.1`, "0m",
		"`missing` says for what. `pod`: masqueraded traffic, or an API server that is late",
		Series{`iam4kube_wait_duration_seconds_count{pod="s-0",missing="pod",outcome="timeout"}`: "0x20 0+30x50"},
		nil,
	},
	{
		Server, "IAM4KubeClientsGetErrors", warning, "Clients get errors",
		`sum by (endpoint, code) (rate(iam4kube_http_requests_total{code=~"429|5.."}[10m])) > 0.02`, "10m",
		"The log lines `could not serve a request` have the reason",
		Series{`iam4kube_http_requests_total{pod="s-0",endpoint="credentials",code="503"}`: "2x20 2+6x50"},
		nil,
	},
	{
		Server, "IAM4KubeAnswersSlow", warning, "Warm answers are slow",
		`histogram_quantile(0.99, sum by (le) (rate(iam4kube_http_request_duration_seconds_bucket{endpoint="credentials"}[10m]))) > 1`, "10m",
		"Waiting counts too: compare with `iam4kube_wait_duration_seconds`",
		Series{
			`iam4kube_http_request_duration_seconds_bucket{pod="s-0",endpoint="credentials",le="0.005"}`: "0+600x20 12000+300x50",
			`iam4kube_http_request_duration_seconds_bucket{pod="s-0",endpoint="credentials",le="1"}`:     "0+600x20 12000+300x50",
		},
		nil,
	},
	{
		Server, "IAM4KubeAnnotationInvalid", warning, "Annotations are wrong",
		`iam4kube_service_accounts{role="invalid"} > 0`, "5m",
		"Events on the pods name the annotation",
		Series{`iam4kube_service_accounts{pod="s-0",role="invalid"}`: "0x20 1x50"},
		nil,
	},
	{
		Server, "IAM4KubeRoleNotAllowed", warning, "Namespaces ask for roles that they may not have",
		`iam4kube_service_accounts{role="not-allowed"} > 0`, "5m",
		"Events `IAMRoleNotAllowed` on the pods name role and namespace",
		Series{`iam4kube_service_accounts{pod="s-0",role="not-allowed"}`: "0x20 1x50"},
		nil,
	},
	{
		Server, "IAM4KubeTokensRefused", warning, "Pods' tokens are refused",
		`sum by (namespace, pod) (rate(iam4kube_pod_tokens_total{outcome="refused"}[10m])) > 0.1`, "0m",
		"The log lines `refused a request` with `kind` `bad-token`, and the [audit log](audit.md), have the reason: [tokens.md](tokens.md#errors)",
		Series{`iam4kube_pod_tokens_total{pod="s-0",outcome="refused"}`: "0x20 0+60x50"},
		nil,
	},
	{
		Server, "IAM4KubeTwoPodsOnOneAddress", warning, "Two pods are on one address",
		`iam4kube_ambiguous_addresses > 0`, "5m",
		"Look at the network plugin's address management",
		Series{`iam4kube_ambiguous_addresses{pod="s-0"}`: "0x20 1x50"},
		nil,
	},
	{
		Server, "IAM4KubeTokenKeyRefused", warning, "The token key is not usable",
		`increase(iam4kube_token_key_refused_total[1h]) > 0`, "0m",
		"Put 32 to 1,024 random bytes into the Secret",
		Series{`iam4kube_token_key_refused_total{pod="s-0"}`: "0x20 1x50"},
		nil,
	},
	{
		Server, "IAM4KubeIssuerKeyRefused", warning, "The issuer's key is not usable",
		`increase(iam4kube_issuer_key_refused_total[1h]) > 0`, "0m",
		"The Secret `iam4kube-issuer-key` was edited: [Rotating the issuer's key](operations.md#rotating-the-issuers-key)",
		Series{`iam4kube_issuer_key_refused_total{pod="s-0"}`: "0x20 1x50"},
		nil,
	},
	{
		Server, "IAM4KubeIssuerUnpublished", critical, "The issuer's URL does not serve the key that signs",
		`iam4kube_issuer_check{outcome="unpublished"} == 1`, "5m",
		"[Publish](operations.md#rotating-the-issuers-key) what `server issuer` prints. Pods keep what they have until it expires",
		Series{`iam4kube_issuer_check{pod="s-0",outcome="unpublished"}`: "0x20 1x50"},
		nil,
	},
	{
		Server, "IAM4KubeConnectionsRefused", warning, "Connections are reset because too many are open (any of the three programs)",
		`sum by (namespace, pod, listener, reason) (rate(iam4kube_connections_refused_total[10m])) > 0.1`, "0m",
		"The log lines `reset a connection: too many are open` have the address: [Limits](server.md#limits)",
		Series{`iam4kube_connections_refused_total{pod="s-0",listener="listen-on",reason="source"}`: "0x20 0+60x50"},
		nil,
	},
	{
		Server, "IAM4KubeAuditRecordsLost", warning, "Records of the audit log are lost",
		`increase(iam4kube_audit_records_total{outcome="lost"}[15m]) > 0`, "0m",
		"The disk of `--audit-log` is full or nobody reads the standard output; `could not write the audit log` has the cause",
		Series{`iam4kube_audit_records_total{pod="s-0",outcome="lost"}`: "0x20 0+5x50"},
		nil,
	},
	{
		IP2service, "IAM4KubeNoServerToRouteTo", critical, "No server to route to",
		`iam4kube_endpoints{state="ready"} == 0`, "1m",
		"Look at the server's pods and the Service",
		Series{`iam4kube_endpoints{pod="i-0",state="ready"}`: "2x20 0x50"},
		nil,
	},
	{
		IP2service, "IAM4KubeRulesNotInForce", critical, "The rules cannot be changed",
		`time() - iam4kube_ruleset_last_sync_timestamp_seconds > 120`, "1m",
		"`/readyz` and the log line `could not bring the rules into the kernel` have the reason",
		Series{`iam4kube_ruleset_last_sync_timestamp_seconds{pod="i-0"}`: "0+60x20 1200x50"},
		nil,
	},
	{
		IP2service, "IAM4KubeRulesChangedByOthers", warning, "Somebody changes the rules",
		`increase(iam4kube_ruleset_repairs_total[15m]) > 0`, "0m",
		"Find who flushes rulesets on the node, a firewall service for example",
		Series{`iam4kube_ruleset_repairs_total{pod="i-0"}`: "0x20 0+1x50"},
		nil,
	},
	{
		IP2service, "IAM4KubeEndpointOnHostNetwork", warning, "An endpoint is an address of its node; only the ip2service of that node can see it",
		`sum(iam4kube_endpoints{state="refused"}) > 0`, "5m",
		"Run the server without hostNetwork",
		Series{`iam4kube_endpoints{pod="i-0",state="refused"}`: "0x20 1x50"},
		nil,
	},
	{
		IP2service, "IAM4KubeRulesMayBePassedBy", critical, "Pods may pass the rules by",
		`iam4kube_bpf_host_routing_suspected == 1`, "5m",
		"See [Beside other software](routing.md#beside-other-software)",
		Series{`iam4kube_bpf_host_routing_suspected{pod="i-0"}`: "0x20 1x50"},
		nil,
	},
	{
		Webhook, "IAM4KubeCertificateExpires", warning, "The certificate is about to expire",
		`iam4kube_certificate_expiration_timestamp_seconds - time() < 86400 * 14`, "5m",
		"cert-manager renews with 30 days left: look at its Certificate",
		Series{`iam4kube_certificate_expiration_timestamp_seconds{pod="w-0"}`: "1211400x70"},
		nil,
	},
	{
		Webhook, "IAM4KubePodsDenied", warning, "Pods are denied",
		`sum by (reason) (rate(iam4kube_admissions_total{outcome="denied"}[10m])) > 0`, "5m",
		"See [When a pod is denied](webhook.md#when-a-pod-is-denied)",
		Series{`iam4kube_admissions_total{pod="w-0",webhook="inject",outcome="denied",reason="name-taken"}`: "0x20 0+1x50"},
		nil,
	},
}

// Healthy is an hour and more in which all is well: what a cluster with some load shows, a few
// requests that came before their pod was seen included.
var Healthy = Series{
	`iam4kube_roles{pod="s-0",state="valid"}`:                                                    "10x70",
	`iam4kube_roles{pod="s-0",state="denied"}`:                                                   "0x70",
	`iam4kube_credentials_soonest_expiration_timestamp_seconds{pod="s-0"}`:                       "3600+60x70",
	`iam4kube_sts_identity_refused{pod="s-0"}`:                                                   "0x70",
	`iam4kube_sts_attempts_total{pod="s-0",outcome="success"}`:                                   "0+1x70",
	`iam4kube_sts_attempts_total{pod="s-0",outcome="throttled"}`:                                 "0x70",
	`iam4kube_sts_queue_length{pod="s-0",class="close-to-expiry"}`:                               "0x70",
	`iam4kube_watch_last_event_timestamp_seconds{pod="s-0",resource="pods"}`:                     "0+60x70",
	`iam4kube_cut_off{pod="s-0"}`:                                                                "0x70",
	`iam4kube_stale{pod="s-0"}`:                                                                  "0x70",
	`iam4kube_wait_duration_seconds_count{pod="s-0",missing="pod",outcome="answered"}`:           "0+10x70",
	`iam4kube_wait_duration_seconds_count{pod="s-0",missing="pod",outcome="timeout"}`:            "0x30 3x40",
	`iam4kube_http_requests_total{pod="s-0",endpoint="credentials",code="200"}`:                  "0+600x70",
	`iam4kube_http_requests_total{pod="s-0",endpoint="credentials",code="503"}`:                  "0x30 3x40",
	`iam4kube_http_request_duration_seconds_bucket{pod="s-0",endpoint="credentials",le="0.005"}`: "0+600x70",
	`iam4kube_http_request_duration_seconds_bucket{pod="s-0",endpoint="credentials",le="1"}`:     "0+600x70",
	`iam4kube_http_request_duration_seconds_bucket{pod="s-0",endpoint="credentials",le="5"}`:     "0+600x70",
	`iam4kube_http_request_duration_seconds_bucket{pod="s-0",endpoint="credentials",le="+Inf"}`:  "0+600x70",
	`iam4kube_service_accounts{pod="s-0",role="invalid"}`:                                        "0x70",
	`iam4kube_service_accounts{pod="s-0",role="not-allowed"}`:                                    "0x70",
	`iam4kube_pod_tokens_total{pod="s-0",outcome="refused"}`:                                     "0x30 2x40",
	`iam4kube_ambiguous_addresses{pod="s-0"}`:                                                    "0x30 1x2 0x40",
	`iam4kube_token_key_refused_total{pod="s-0"}`:                                                "0x70",
	`iam4kube_issuer_key_refused_total{pod="s-0"}`:                                               "0x70",
	`iam4kube_issuer_check{pod="s-0",outcome="unpublished"}`:                                     "0x70",
	`iam4kube_connections_refused_total{pod="s-0",listener="listen-on",reason="source"}`:         "0x70",
	`iam4kube_audit_records_total{pod="s-0",outcome="lost"}`:                                     "0x70",
	`iam4kube_endpoints{pod="i-0",state="ready"}`:                                                "2x70",
	`iam4kube_endpoints{pod="i-0",state="refused"}`:                                              "0x70",
	`iam4kube_ruleset_last_sync_timestamp_seconds{pod="i-0"}`:                                    "0+60x70",
	`iam4kube_ruleset_repairs_total{pod="i-0"}`:                                                  "0x70",
	`iam4kube_bpf_host_routing_suspected{pod="i-0"}`:                                             "0x70",
	`iam4kube_certificate_expiration_timestamp_seconds{pod="w-0"}`:                               "5184000x70",
	`iam4kube_admissions_total{pod="w-0",webhook="inject",outcome="injected",reason="new"}`:      "0+1x70",
	`iam4kube_admissions_total{pod="w-0",webhook="inject",outcome="denied",reason="name-taken"}`: "0x70",
	`iam4kube_watch_last_event_timestamp_seconds{pod="i-0",resource="endpointslices"}`:           "0+60x70",
	`iam4kube_watch_last_event_timestamp_seconds{pod="w-0",resource="services"}`:                 "0+60x70",
	`iam4kube_stale{pod="i-0"}`:                                                                  "0x70",
	`iam4kube_connections_refused_total{pod="w-0",listener="listen-on",reason="total"}`:          "0x70",
}
