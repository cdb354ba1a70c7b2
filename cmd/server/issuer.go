package main

import (
	"context"
	"io"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/flags"
	"github.com/iam4kube/iam4kube/internal/program"
	"github.com/iam4kube/iam4kube/internal/server"
)

// issuerCommand is `server issuer`, or `server issuer rotate`.
func issuerCommand(rotate bool, documents, say io.Writer) program.Program[server.IssuerConfig] {
	name := command.Name + " issuer"
	if rotate {
		name += " rotate"
	}
	return program.Program[server.IssuerConfig]{
		Name: name,
		Flags: func(f *flags.Set) func() server.IssuerConfig {
			var cfg server.IssuerConfig
			f.File(&cfg.Kubeconfig, "kubeconfig", "kubeconfig file; empty: that of the pod")
			f.String(&cfg.Namespace, "namespace", ownNamespace(), "namespace of the Secret with the issuer's key")
			f.String(&cfg.Issuer, "issuer", "", "URL of the issuer, that of the server's flag")
			if !rotate {
				f.String(&cfg.Out, "out", "", "folder for the two documents; empty: standard output, one after the other")
				return func() server.IssuerConfig { return cfg }
			}
			cfg.Rotation = new(server.Rotation)
			f.Duration(&cfg.Rotation.After, "after", "1h", 0, 30*24*time.Hour, "how long the next key has to have been published before it signs; AWS does not say how long it goes by what it has read")
			f.Bool(&cfg.Rotation.Published, "published", "false", "take for granted that the URL serves what server issuer wrote last, where it cannot be read from here")
			f.Bool(&cfg.Rotation.AtOnce, "emergency", "false", "the key is no secret any more: replace it now, published or not")
			return func() server.IssuerConfig { return cfg }
		},
		Run: func(ctx context.Context, cfg server.IssuerConfig, _ *zap.Logger) error {
			return server.RunIssuer(ctx, cfg, documents, say)
		},
	}
}

// subcommand runs the program that the first arguments name, if they name one.
func subcommand() (status int, is bool) {
	if status, is = runTrust(); is {
		return status, true
	}
	if len(os.Args) < 2 || os.Args[1] != "issuer" {
		return 0, false
	}
	os.Args = os.Args[1:]
	rotate := len(os.Args) > 1 && os.Args[1] == "rotate"
	if rotate {
		os.Args = os.Args[1:]
	}
	return issuerCommand(rotate, os.Stdout, os.Stderr).Main(), true
}
