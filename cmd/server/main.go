// The server answers the metadata API with the credentials of pods' IAM roles.
package main

import (
	"os"
	"strings"
	"time"

	"github.com/iam4kube/iam4kube/internal/flags"
	"github.com/iam4kube/iam4kube/internal/program"
	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

var command = program.Program[server.Config]{Name: "server", Flags: add, Run: server.Run}

func main() {
	if status, is := subcommand(); is {
		os.Exit(status)
	}
	paceCollector()
	os.Exit(command.Main())
}

func add(f *flags.Set) (config func() server.Config) {
	const longest = 24 * time.Hour
	var cfg server.Config
	f.Address(&cfg.AuxListenOn, "aux-listen-on", ":9090", "address for /metrics, /healthz and /readyz")
	f.Bool(&cfg.Debug, "debug", "false", "serve profiles and dumps on 127.0.0.1:6060")
	f.String(&cfg.AuditLog, "audit-log", "", "file to which records of who got credentials and who was refused are appended; -: the standard output; empty: none")
	f.File(&cfg.Kubeconfig, "kubeconfig", "kubeconfig file; empty: that of the pod")
	f.Address(&cfg.ListenOn, "listen-on", ":8080", "address for the metadata API")
	f.Float(&cfg.STSRateLimit, "sts-rate-limit", "10", 0.01, 10000, "requests a second to STS, at most")
	f.Int(&cfg.STSRateBurst, "sts-rate-burst", "20", 1, 10000, "requests at once to STS, at most")
	const webIdentity = "AssumeRoleWithWebIdentity"
	var operation string
	f.Choice(&operation, "sts-operation", "AssumeRole", []string{"AssumeRole", webIdentity}, "how roles are assumed: with AWS credentials of the server's own, or with tokens that it signs for each ServiceAccount")
	f.String(&cfg.Issuer, "issuer", "", "URL of the tokens' issuer, as IAM's identity providers have it; for --sts-operation "+webIdentity)
	f.Only("sts-operation", webIdentity, "issuer")
	f.Duration(&cfg.MaxWait, "max-wait", "15s", 0, longest, "longest time that a request waits for what is missing")
	f.Duration(&cfg.Drain, "drain", "10s", 0, longest, "time between SIGTERM and the end of accepting requests")
	f.Duration(&cfg.ReadyWithin, "ready-within", "10m", 0, longest, "time after which roles that were not tried yet no longer keep the server from being ready")
	f.Duration(&cfg.MaxStaleness, "max-staleness", "15m", 0, longest, "time without a word from the API server after which requests are refused, because addresses may have other owners; 0: never")
	f.Duration(&cfg.SessionDuration, "session-duration", "1h", role.MinDuration, role.MaxDuration, "length of a session without the annotation "+role.AnnotationDuration)
	f.Bool(&cfg.IMDSv1, "imdsv1", "true", "answer requests without a session token")
	var rolesByDefault string
	f.Choice(&rolesByDefault, "roles-by-default", "allow", []string{"allow", "deny"}, "whether ServiceAccounts may have any role where the namespace has no annotation "+role.AnnotationAllowed)
	f.String(&cfg.Sessions.Cluster, "cluster", "", "name of the cluster, for the session tag "+role.TagCluster)
	f.Bool(&cfg.Sessions.Tagged, "session-tags", "false", "tag sessions with cluster, namespace and ServiceAccount; roles have to allow sts:TagSession")
	var tags []string
	f.Strings(&tags, "session-tag", "KEY=VALUE, a further tag of all sessions; may be repeated")
	f.Bool(&cfg.Sessions.SourceIdentity, "source-identity", "false", "set the source identity of sessions to their names; roles have to allow sts:SetSourceIdentity")
	f.Strings(&cfg.TokenForwarders, "token-forwarder", "NAMESPACE/NAME of a ServiceAccount whose pods may hand in the tokens of others; may be repeated")
	f.String(&cfg.Namespace, "namespace", ownNamespace(), "namespace of the Secret with the token key; the pod's own")
	f.String(&cfg.Region, "region", "", "region of pods whose nodes have no label topology.kubernetes.io/region or are another provider's, and of STS if the AWS configuration names none")
	f.String(&cfg.AvailabilityZone, "availability-zone", "", "zone of pods whose nodes have no label topology.kubernetes.io/zone or are another provider's")
	return func() server.Config {
		cfg.Sessions.WebIdentity = operation == webIdentity
		cfg.DenyRolesByDefault = rolesByDefault == "deny"
		cfg.Sessions.Tags = parseTags(tags)
		return cfg
	}
}

// ownNamespace is where the kubelet says that this pod is.
func ownNamespace() string {
	const file, fallback = "/var/run/secrets/kubernetes.io/serviceaccount/namespace", "iam4kube"
	if name, err := os.ReadFile(file); err == nil && len(name) > 0 {
		return strings.TrimSpace(string(name))
	}
	return fallback
}
