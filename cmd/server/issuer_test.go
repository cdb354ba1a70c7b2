package main

import (
	"bytes"
	"strings"
	"testing"
)

// The subcommands check their flags as the server does, before anybody is asked.
func TestIssuerFlags(t *testing.T) {
	const url = "--issuer=https://issuer.example"
	for _, tc := range []struct {
		rotate    bool
		arguments []string
		want      []string
	}{
		{false, nil, []string{"server issuer: ", "--issuer", "want https://HOST"}},
		{false, []string{url, "--namespace=A"}, []string{"--namespace"}},
		{false, []string{url, "--after=1h"}, []string{"unknown flag", "--out"}},
		{false, []string{url, "print"}, []string{`"print"`, "only flags"}},
		{true, []string{url, "--out=x"}, []string{"server issuer rotate: ", "unknown flag", "--emergency"}},
		{true, []string{url, "--after=-1s"}, []string{"after", "a duration from 0s"}},
		{true, []string{url, "--emergency", "--published"}, []string{"--emergency and --published"}},
	} {
		var documents, say, stdout, stderr bytes.Buffer
		status := issuerCommand(tc.rotate, &documents, &say).Start(t.Context(), tc.arguments, &stdout, &stderr)
		if status != 2 || documents.Len()+say.Len()+stdout.Len() != 0 {
			t.Errorf("%q: exit %d, %s%s%s", tc.arguments, status, &documents, &say, &stdout)
		}
		oneLine(t, tc.arguments, stderr.String(), tc.want...)
	}
	// And what is asked of the API server fails in one line.
	var documents, say, stdout, stderr bytes.Buffer
	status := issuerCommand(true, &documents, &say).Start(t.Context(), []string{url, "--kubeconfig", kubeconfig(t, unused)}, &stdout, &stderr)
	if status != 1 || documents.Len()+say.Len() != 0 || !strings.HasPrefix(stderr.String(), "server issuer rotate: the issuer's key: ") {
		t.Errorf("exit %d, %s", status, &stderr)
	}
}
