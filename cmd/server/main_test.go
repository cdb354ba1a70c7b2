package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runWith runs the program to its end. Nothing in these tests lets it serve.
func runWith(t *testing.T, arguments ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	code = command.Start(ctx, arguments, &out, &errs)
	if ctx.Err() != nil {
		t.Fatalf("%q: it started: %s", arguments, errs.String())
	}
	return code, out.String(), errs.String()
}

// oneLine checks that the output is a single line with these parts.
func oneLine(t *testing.T, arguments []string, stderr string, parts ...string) {
	t.Helper()
	if strings.Count(stderr, "\n") != 1 || !strings.HasSuffix(stderr, "\n") {
		t.Errorf("%q: want one line, got %q", arguments, stderr)
	}
	for _, part := range parts {
		if !strings.Contains(stderr, part) {
			t.Errorf("%q: %q does not say %q", arguments, stderr, part)
		}
	}
}

func TestWrongFlagsExitWith2(t *testing.T) {
	// A port that is taken: a program that listened would say so and exit with 1.
	taken := listen(t)
	for _, tc := range []struct {
		arguments []string
		want      []string
	}{
		{[]string{"--log-level=verbose"}, []string{"log-level", "debug, info, warn, error"}},
		{[]string{"--log-encoding=text"}, []string{"log-encoding", "json, console"}},
		{[]string{"--aux-listen-on=9090"}, []string{"aux-listen-on", "[IP]:PORT"}},
		{[]string{"--debug=maybe"}, []string{"debug", "true or false"}},
		{[]string{"--audit-log=/does/not/exist"}, []string{"--audit-log", "folder that exists"}},
		{[]string{"--audit-log=" + t.TempDir()}, []string{"--audit-log", "regular file"}},
		{[]string{"--kubeconfig=/does/not/exist"}, []string{"kubeconfig", "readable file"}},
		{[]string{"--kubeconfig=" + t.TempDir()}, []string{"kubeconfig", "readable file"}},
		{[]string{"--kubeconfig=a\nb"}, []string{"kubeconfig", "readable file"}},
		{[]string{"--listen-on=iam4kube:80"}, []string{"listen-on", "[IP]:PORT"}},
		{[]string{"--sts-rate-limit=0"}, []string{"sts-rate-limit", "from 0.01 to 10000"}},
		{[]string{"--sts-rate-limit=NaN"}, []string{"sts-rate-limit", "from 0.01 to 10000"}},
		{[]string{"--sts-rate-burst=0"}, []string{"sts-rate-burst", "from 1 to 10000"}},
		{[]string{"--max-staleness=4m59s"}, []string{"--max-staleness", "want 0", "at least 5m"}},
		{[]string{"--max-staleness=-1s"}, []string{"max-staleness", "a duration from 0s"}},
		{[]string{"--max-wait=15"}, []string{"max-wait", "a duration from 0s"}},
		{[]string{"--max-wait=-1s"}, []string{"max-wait", "a duration from 0s"}},
		{[]string{"--drain=25h"}, []string{"drain", "to 24h"}},
		{[]string{"--ready-within=soon"}, []string{"ready-within", "a duration"}},
		{[]string{"--session-duration=899s"}, []string{"session-duration", "from 15m0s to 12h0m0s"}},
		{[]string{"--session-duration=12h1s"}, []string{"session-duration", "from 15m0s to 12h0m0s"}},
		{[]string{"--session-duration=900.5s"}, []string{"session-duration", "whole seconds"}},
		{[]string{"--imdsv1", "false"}, []string{`"false"`, "--name=false"}},
		{[]string{"--roles-by-default=none"}, []string{"roles-by-default", "allow", "deny"}},
		{[]string{"--session-tag=a=b"}, []string{"--session-tag", "--session-tags"}},
		{[]string{"--session-tags", "--session-tag=a"}, []string{"--session-tag", "key"}},
		{[]string{"--session-tags", "--session-tag=aws:a=b"}, []string{"--session-tag", "aws:"}},
		{[]string{"--session-tags", "--session-tag=A=b", "--session-tag=a=c"}, []string{"--session-tag", "twice"}},
		{[]string{"--session-tags", "--session-tag=Kubernetes-Namespace=c"}, []string{"--session-tag", "twice"}},
		{[]string{"--session-tags", "--cluster=a;b"}, []string{"--cluster", "kubernetes-cluster"}},
		{[]string{"--sts-operation=AssumeRoleWithSAML"}, []string{"sts-operation", "AssumeRole, AssumeRoleWithWebIdentity"}},
		{[]string{"--issuer=https://example.com"}, []string{"--issuer", "--sts-operation AssumeRole"}},
		{[]string{"--sts-operation=AssumeRoleWithWebIdentity"}, []string{"--issuer", "want https://HOST"}},
		{[]string{"--sts-operation=AssumeRoleWithWebIdentity", "--issuer=http://example.com"}, []string{"--issuer", "want https://HOST"}},
		{[]string{"--sts-operation=AssumeRoleWithWebIdentity", "--issuer=https://example.com:8443/a"}, []string{"--issuer", "without a port"}},
		{[]string{"--sts-operation=AssumeRoleWithWebIdentity", "--issuer=https://example.com/a/"}, []string{"--issuer", "final slash"}},
		{[]string{"--token-forwarder=kube-system"}, []string{"--token-forwarder", "NAMESPACE/NAME"}},
		{[]string{"--token-forwarder=a/b", "--token-forwarder=a/B"}, []string{"--token-forwarder", "NAMESPACE/NAME"}},
		{[]string{"--namespace="}, []string{"--namespace", "name"}},
		{[]string{"--namespace=a/b"}, []string{"--namespace", "name"}},
		{[]string{"--namespace=IAM"}, []string{"--namespace", "name"}},
		{[]string{"--region=eu west"}, []string{"--region", "label"}},
		{[]string{"--availability-zone=a\nb"}, []string{"--availability-zone", "label"}},
		{[]string{"--listen-on=:8080", "--aux-listen-on=:8080"}, []string{"--listen-on", "--aux-listen-on", "two addresses"}},
		{[]string{"--unknown"}, []string{"-unknown", "--listen-on"}},
		{[]string{"--un\nknown"}, []string{"accepted are", "--listen-on"}},
		{[]string{"--max-wait"}, []string{"--max-wait", "longest time"}},
		{[]string{"serve"}, []string{`"serve"`, "only flags"}},
	} {
		arguments := append([]string{"--listen-on", taken}, tc.arguments...)
		code, stdout, stderr := runWith(t, arguments...)
		if code != 2 || stdout != "" {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", tc.arguments, code, stdout, stderr)
		}
		oneLine(t, tc.arguments, stderr, tc.want...)
	}
}

func TestHelp(t *testing.T) {
	for _, argument := range []string{"--help", "-help", "-h"} {
		code, stdout, stderr := runWith(t, argument)
		if code != 0 || stderr != "" {
			t.Errorf("%s: exit %d, stderr %q", argument, code, stderr)
		}
		// The names and defaults that manifests and users rely on.
		for _, line := range []string{
			`--log-level "info"`, `--log-encoding "json"`, `--aux-listen-on ":9090"`, `--debug "false"`, `--kubeconfig ""`,
			`--listen-on ":8080"`, `--sts-rate-limit "10"`, `--sts-rate-burst "20"`, `--max-wait "15s"`, `--max-staleness "15m"`, `--drain "10s"`,
			`--ready-within "10m"`, `--session-duration "1h"`, `--imdsv1 "true"`, `--namespace "iam4kube"`, `--region ""`, `--availability-zone ""`, `--token-forwarder ""`, `--version "false"`,
			`--roles-by-default "allow"`, `--cluster ""`, `--session-tags "false"`, `--session-tag ""`, `--source-identity "false"`,
			`--sts-operation "AssumeRole"`, `--issuer ""`, `--audit-log ""`,
		} {
			if strings.Count(stdout, "  "+line+"\n") != 1 {
				t.Errorf("%s: want the line %s in %s", argument, line, stdout)
			}
		}
		if flags := strings.Count(stdout, "\n  --"); flags != 27 {
			t.Errorf("%s: %d flags", argument, flags)
		}
	}
}

func listen(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

// kubeconfig names an API server that nobody asks: the program fails before.
func kubeconfig(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const unused = `{"apiVersion": "v1", "kind": "Config", "current-context": "c",
	"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
	"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}], "users": [{"name": "u"}]}`

// withAWS leaves nothing of the developer's own AWS configuration.
func withAWS(t *testing.T, region string) {
	t.Helper()
	for _, name := range []string{"AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"} {
		t.Setenv(name, "")
	}
	for _, name := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
		t.Setenv(name, os.DevNull)
	}
	t.Setenv("AWS_REGION", region)
}

// A start that fails for a reason outside of the flags: one line, exit 1.
func TestFailedStartExitsWith1(t *testing.T) {
	taken := listen(t)
	good := kubeconfig(t, unused)
	for _, tc := range []struct {
		name, region string
		arguments    []string
		want         []string
	}{
		{"port taken", "eu-west-1", []string{"--kubeconfig", good, "--listen-on", taken, "--aux-listen-on=127.0.0.1:0"}, []string{"--listen-on", taken, "in use"}},
		{"aux port taken", "eu-west-1", []string{"--kubeconfig", good, "--listen-on=127.0.0.1:0", "--aux-listen-on", taken}, []string{"--aux-listen-on", taken, "in use"}},
		{"no AWS region", "", []string{"--kubeconfig", good, "--listen-on", taken}, []string{"AWS_REGION", "--region"}},
		{"audit log", "eu-west-1", []string{"--audit-log=/proc/iam4kube.log", "--listen-on", taken}, []string{"--audit-log", "/proc/iam4kube.log"}},
		{"not in a pod", "eu-west-1", []string{"--listen-on", taken}, []string{"not in a pod", "--kubeconfig"}},
		{"not a kubeconfig", "eu-west-1", []string{"--kubeconfig", kubeconfig(t, "{"), "--listen-on", taken}, []string{"--kubeconfig"}},
		{"empty kubeconfig", "eu-west-1", []string{"--kubeconfig", kubeconfig(t, ""), "--listen-on", taken}, []string{"--kubeconfig"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			withAWS(t, tc.region)
			code, stdout, stderr := runWith(t, tc.arguments...)
			if code != 1 || stdout != "" {
				t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			oneLine(t, tc.arguments, stderr, tc.want...)
		})
	}
}
