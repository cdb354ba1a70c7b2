package main

import (
	"io"
	"slices"
	"strings"
	"testing"
)

func TestTrustArguments(t *testing.T) {
	for _, tc := range []struct {
		arguments []string
		account   string
		rest      []string
		is        bool
	}{
		{nil, "", nil, false},
		{[]string{"--debug"}, "", nil, false},
		{[]string{"trust"}, "", []string{}, true},
		{[]string{"trust", "--help"}, "", []string{"--help"}, true},
		{[]string{"trust", "shop/orders", "--cluster", "a"}, "shop/orders", []string{"--cluster", "a"}, true},
	} {
		account, rest, is := trustArguments(tc.arguments)
		if account != tc.account || !slices.Equal(rest, tc.rest) || is != tc.is {
			t.Errorf("%q: %q, %q, %t", tc.arguments, account, rest, is)
		}
	}
}

// What is wrong is named before anything is asked.
func TestWrongTrust(t *testing.T) {
	const role = "--principal=arn:aws:iam::123456789012:role/iam4kube-server"
	for _, tc := range []struct {
		account string
		flags   []string
		says    string
	}{
		{"", nil, "want NAMESPACE/NAME"},
		{"orders", nil, "want NAMESPACE/NAME"},
		{"Shop/orders", nil, "want NAMESPACE/NAME"},
		{"shop/orders", []string{"--principal=iam4kube"}, "--principal"},
		{"shop/orders", []string{"--principal=arn:aws:sts::123456789012:assumed-role/iam4kube-server/i-1"}, "--principal"},
		{"shop/orders", []string{role, "--issuer=https://example.com"}, "want one"},
		{"shop/orders", []string{"--session-tag=a=b"}, "--session-tags"},
		{"shop/orders", []string{"--session-tags", "--session-tag=a"}, "--session-tag"},
		{"shop/orders", []string{"--max-wait=1s"}, "-max-wait"},
	} {
		_, _, err := trustCommand(tc.account, io.Discard).Parse(tc.flags, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%q %q: %v", tc.account, tc.flags, err)
		}
	}
	cfg, _, err := trustCommand("shop/orders", io.Discard).Parse([]string{role, "--session-tags", "--session-tag=a=b=c", "--cluster=x", "--source-identity"}, io.Discard)
	if err != nil || len(cfg.Sessions.Tags) != 1 || cfg.Sessions.Tags[0].Value != "b=c" || !cfg.Sessions.SourceIdentity || cfg.Sessions.Cluster != "x" {
		t.Errorf("%+v, %v", cfg, err)
	}
}
