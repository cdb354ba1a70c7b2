package metadata

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

func TestHostIsAddress(t *testing.T) {
	for host, want := range map[string]bool{
		"":                       true, // HTTP/1.0
		"169.254.169.254":        true,
		"169.254.169.254:80":     true,
		"169.254.169.254:8080":   true,
		"127.0.0.1":              true,
		"[fd00:ec2::254]":        true,
		"[fd00:ec2::254]:80":     true,
		"fd00:ec2::254":          true,
		"[::ffff:169.254.1.1]:1": true,

		"localhost":                      false,
		"localhost:80":                   false,
		"metadata.google.internal":       false,
		"169.254.169.254.nip.io":         false,
		"169.254.169.254.nip.io:80":      false,
		"169.254.169.254.":               false,
		"instance-data":                  false,
		"instance-data.ec2.internal":     false,
		"iam4kube":                       false,
		"iam4kube.iam4kube.svc":          false,
		"a169.254.169.254":               false,
		"169.254.169.254@example.com":    false,
		"example.com#169.254.169.254":    false,
		"169.254.169.254,example.com":    false,
		"169.254.169.254 example.com":    false,
		"169.254.169":                    false,
		"2852039166":                     false, // forms of 169.254.169.254 that are names here
		"0xa9fea9fe":                     false,
		"0251.0376.0251.0376":            false,
		"169.254.169.254:80:80":          false,
		"169.254.169.254:http":           false,
		"[::1":                           false,
		"::1]":                           false,
		"[::1]]":                         false,
		"[]":                             false,
		":80":                            false,
		"[example.com]":                  false,
		"\uff11\uff16\uff19.254.169.254": false, // full-width digits
	} {
		if got := hostIsAddress(host); got != want {
			t.Errorf("%q: got %v", host, got)
		}
	}
}

func TestSource(t *testing.T) {
	for remote, want := range map[string]string{
		"10.1.2.3:4567":          "10.1.2.3",
		"[::ffff:10.1.2.3]:4567": "10.1.2.3", // of a dual-stack listener
		"[fd00::1]:4567":         "fd00::1",
		"[fe80::1%eth0]:4567":    "fe80::1",
	} {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.RemoteAddr = remote
		if from, ok := source(r); !ok || from != netip.MustParseAddr(want) {
			t.Errorf("%s: got %v, %v", remote, from, ok)
		}
	}
	for _, remote := range []string{"", "@", "pipe", "10.1.2.3", "10.1.2.3:", "name:80"} {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.RemoteAddr = remote
		if from, ok := source(r); ok {
			t.Errorf("%s: got %v", remote, from)
		}
	}
}
