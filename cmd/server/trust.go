package main

import (
	"context"
	"io"
	"os"
	"strings"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/flags"
	"github.com/iam4kube/iam4kube/internal/program"
	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// trustCommand is `server trust NAMESPACE/NAME`.
func trustCommand(account string, policy io.Writer) program.Program[server.TrustConfig] {
	return program.Program[server.TrustConfig]{
		Name: command.Name + " trust",
		Flags: func(f *flags.Set) func() server.TrustConfig {
			cfg := server.TrustConfig{Account: account}
			f.File(&cfg.Kubeconfig, "kubeconfig", "kubeconfig file; empty: that of the pod")
			f.String(&cfg.Principal, "principal", "", "ARN of the server's own IAM role or user; empty: the one that STS tells for this process's AWS configuration")
			f.String(&cfg.Issuer, "issuer", "", "URL of the tokens' issuer, where the server has no AWS credentials but signs tokens")
			f.String(&cfg.Sessions.Cluster, "cluster", "", "as the server's")
			f.Bool(&cfg.Sessions.Tagged, "session-tags", "false", "as the server's")
			var tags []string
			f.Strings(&tags, "session-tag", "KEY=VALUE, as the server's; may be repeated")
			f.Bool(&cfg.Sessions.SourceIdentity, "source-identity", "false", "as the server's")
			return func() server.TrustConfig {
				cfg.Sessions.Tags = parseTags(tags)
				return cfg
			}
		},
		Run: func(ctx context.Context, cfg server.TrustConfig, log *zap.Logger) error {
			return server.RunTrust(ctx, cfg, log, policy)
		},
	}
}

// trustArguments are the ServiceAccount and the flags behind it, if the first argument is trust.
func trustArguments(arguments []string) (account string, rest []string, is bool) {
	if len(arguments) == 0 || arguments[0] != "trust" {
		return "", nil, false
	}
	rest = arguments[1:]
	if len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		account, rest = rest[0], rest[1:]
	}
	return account, rest, true
}

// runTrust runs `server trust` if that is what was asked for.
func runTrust() (status int, is bool) {
	account, rest, is := trustArguments(os.Args[1:])
	if !is {
		return 0, false
	}
	os.Args = append(os.Args[:1:1], rest...)
	return trustCommand(account, os.Stdout).Main(), true
}

// parseTags splits KEY=VALUE.
func parseTags(texts []string) (tags []role.Tag) {
	for _, tag := range texts {
		key, value, found := strings.Cut(tag, "=")
		if !found {
			key = "" // none that is accepted
		}
		tags = append(tags, role.Tag{Key: key, Value: value})
	}
	return tags
}
