// Command fakests serves the fake STS of package fakests for demonstrations, and
// beside it, where it is told an address for that, the fake S3 and the files of an
// OpenID Connect issuer over https. It prints one line for each request, without secrets.
//
//	fakests -listen 127.0.0.1:4566 -accounts accounts.json -s3 127.0.0.1:4567 -s3-tls 127.0.0.1:4568
//
// The file holds {"keys": [{"accessKeyID", "secretAccessKey", "arn"}…], "providers":
// [{"account", "url", "clientIDs"}…], "roles": [{"arn", "maxSessionDuration", "trust":
// {"principals", "externalID", "sessionNames", "webIdentities", "federated",
// "stringEquals", "stringLike"}}…]}.
package main

import (
	"cmp"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/iam4kube/iam4kube/test/fakests"
)

// options are the flags.
type options struct {
	listen, accounts, region string
	s3, s3TLS                string
	web, webFiles, webTLS    string
}

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:4566", "`address` to listen on")
	flag.StringVar(&o.accounts, "accounts", "", "JSON `file` with keys, providers and roles")
	flag.StringVar(&o.region, "region", "us-east-1", "AWS `region` that requests must be signed for")
	flag.StringVar(&o.s3, "s3", "", "`address` of the fake S3; default: none")
	flag.StringVar(&o.s3TLS, "s3-tls", "", "`address` of the fake S3 with TLS, with a certificate that nobody trusts; default: none")
	flag.StringVar(&o.web, "web", "", "`address` of a web server with TLS, for the documents of an issuer; default: none")
	flag.StringVar(&o.webFiles, "web-files", "", "`folder` with what it serves")
	flag.StringVar(&o.webTLS, "web-tls", "", "`folder` with its tls.crt and tls.key")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "fakests:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	file, err := os.ReadFile(o.accounts)
	if err != nil {
		return fmt.Errorf("-accounts: %w", err)
	}
	fake := fakests.New(fakests.Config{Region: o.region, OnAnswer: printAttempt})
	if err := fake.Load(file); err != nil {
		return fmt.Errorf("-accounts %s: %w", o.accounts, err)
	}
	s3 := fake.S3()
	s3.OnAnswer = printS3
	webTLS := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.web != "" {
		certificate, err := tls.LoadX509KeyPair(filepath.Join(o.webTLS, "tls.crt"), filepath.Join(o.webTLS, "tls.key"))
		if err != nil {
			return fmt.Errorf("-web-tls: %w", err)
		}
		webTLS.Certificates = []tls.Certificate{certificate}
	}
	ended := make(chan error)
	for _, service := range []struct {
		name, address string
		handler       http.Handler
		tls           *tls.Config
	}{
		{"sts", o.listen, fake, nil},
		{"s3", o.s3, s3, nil},
		{"s3-tls", o.s3TLS, s3, fakests.SelfSigned()},
		{"web", o.web, http.FileServer(http.Dir(o.webFiles)), webTLS},
	} {
		if service.address == "" {
			continue
		}
		listener, err := net.Listen("tcp", service.address)
		if err != nil {
			return fmt.Errorf("%s: %w", service.name, err)
		}
		if service.tls != nil {
			listener = tls.NewListener(listener, service.tls)
		}
		fmt.Printf("fakests: %s listening on %s\n", service.name, listener.Addr())
		server := &http.Server{Handler: service.handler, ReadHeaderTimeout: 10 * time.Second}
		go func() { ended <- server.Serve(listener) }()
	}
	return <-ended
}

func printAttempt(a fakests.Attempt) {
	fmt.Printf("%s %s role=%s session=%s outcome=%s issued=%s\n",
		a.Time.UTC().Format(time.RFC3339), a.Action, a.RoleARN, a.SessionName, a.Outcome, a.IssuedAccessKeyID)
}

func printS3(r fakests.S3Request) {
	fmt.Printf("%s s3 %s %s caller=%s arn=%s outcome=%s\n",
		r.Time.UTC().Format(time.RFC3339), r.Method, r.URI, r.AccessKeyID, r.ARN, cmp.Or(r.Code, fakests.OutcomeSuccess))
}
