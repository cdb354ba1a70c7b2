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
		{[]string{"--aux-listen-on=9090"}, []string{"aux-listen-on", "[IP]:PORT"}},
		{[]string{"--kubeconfig=/does/not/exist"}, []string{"kubeconfig", "readable file"}},
		{[]string{"--listen-on=webhook:443"}, []string{"listen-on", "[IP]:PORT"}},
		{[]string{"--cert-dir="}, []string{"--cert-dir", "tls.crt"}},
		{[]string{"--service-namespace=a/b"}, []string{"--service-namespace", "name of a namespace"}},
		{[]string{"--service-name=1"}, []string{"--service-name", "name of a Service"}},
		{[]string{"--init-image="}, []string{"--init-image", "image of ip2service"}},
		{[]string{"--init-image= x"}, []string{"--init-image", "image of ip2service"}},
		{[]string{"--init-image-pull-policy=always"}, []string{"init-image-pull-policy", "IfNotPresent, Always, Never"}},
		{[]string{"--probe-timeout=60"}, []string{"probe-timeout", "a duration from 0s"}},
		{[]string{"--wait=1us"}, []string{"--wait", "whole milliseconds"}},
		{[]string{"--wait=-1s"}, []string{"wait", "a duration from 0s"}},
		{[]string{"--listen-on=:9443", "--aux-listen-on=:9443"}, []string{"--listen-on", "--aux-listen-on", "two addresses"}},
		{[]string{"--unknown"}, []string{"-unknown", "--init-image"}},
		{[]string{"serve"}, []string{`"serve"`, "only flags"}},
	} {
		arguments := append([]string{"--listen-on", taken, "--init-image=i"}, tc.arguments...)
		code, stdout, stderr := runWith(t, arguments...)
		if code != 2 || stdout != "" {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", tc.arguments, code, stdout, stderr)
		}
		oneLine(t, tc.arguments, stderr, tc.want...)
	}
	code, _, stderr := runWith(t, "--listen-on", taken)
	if code != 2 {
		t.Errorf("without an image: exit %d", code)
	}
	oneLine(t, nil, stderr, "--init-image")
}

func TestHelp(t *testing.T) {
	code, stdout, stderr := runWith(t, "--help")
	if code != 0 || stderr != "" {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
	// The names and defaults that manifests and users rely on.
	lines := []string{
		`--log-level "info"`, `--log-encoding "json"`, `--aux-listen-on ":9090"`, `--debug "false"`, `--kubeconfig ""`, `--listen-on ":9443"`,
		`--cert-dir "/etc/iam4kube/tls"`, `--service-namespace "iam4kube"`, `--service-name "iam4kube"`, `--init-image ""`, `--init-image-pull-policy "IfNotPresent"`, `--allow-dns "false"`, `--intercept-ip ""`, `--probe-timeout "60s"`, `--wait "5s"`, `--version "false"`,
	}
	for _, line := range lines {
		if strings.Count(stdout, "  "+line+"\n") != 1 {
			t.Errorf("want the line %s in %s", line, stdout)
		}
	}
	if flags := strings.Count(stdout, "\n  --"); flags != len(lines) {
		t.Errorf("%d flags", flags)
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

// A start that fails for a reason outside of the flags: one line, exit 1.
func TestFailedStartExitsWith1(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	taken, good := listen(t), filepath.Join(t.TempDir(), "kubeconfig")
	// It names an API server that nobody asks: the program fails before.
	if err := os.WriteFile(good, []byte(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}], "users": [{"name": "u"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name      string
		arguments []string
		want      []string
	}{
		{"port taken", []string{"--kubeconfig", good, "--listen-on", taken, "--aux-listen-on=127.0.0.1:0"}, []string{"--listen-on", taken, "in use"}},
		{"aux port taken", []string{"--kubeconfig", good, "--listen-on=127.0.0.1:0", "--aux-listen-on", taken}, []string{"--aux-listen-on", taken, "in use"}},
		{"not in a pod", []string{"--listen-on", taken}, []string{"not in a pod", "--kubeconfig"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stdout, stderr := runWith(t, append(tc.arguments, "--init-image=i")...)
			if code != 1 || stdout != "" {
				t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			oneLine(t, tc.arguments, stderr, tc.want...)
		})
	}
}
