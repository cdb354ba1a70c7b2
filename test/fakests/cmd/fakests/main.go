// Command fakests serves the fake STS of package fakests for demonstrations, and
// the fake S3 beside it where it is told an address for that. It prints one line
// for each request, without secrets.
//
//	fakests -listen 127.0.0.1:4566 -accounts accounts.json -s3 127.0.0.1:4567 -s3-tls 127.0.0.1:4568
//
// The file holds {"keys": [{"accessKeyID", "secretAccessKey", "arn"}…], "roles":
// [{"arn", "maxSessionDuration", "trust": {"principals", "externalID",
// "sessionNames", "webIdentities"}}…]}.
package main

import (
	"cmp"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/iam4kube/iam4kube/test/fakests"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:4566", "`address` to listen on")
	accounts := flag.String("accounts", "", "JSON `file` with keys and roles")
	region := flag.String("region", "us-east-1", "AWS `region` that requests must be signed for")
	s3 := flag.String("s3", "", "`address` of the fake S3; default: none")
	s3TLS := flag.String("s3-tls", "", "`address` of the fake S3 with TLS, with a certificate that nobody trusts; default: none")
	flag.Parse()
	if err := run(*listen, *s3, *s3TLS, *accounts, *region); err != nil {
		fmt.Fprintln(os.Stderr, "fakests:", err)
		os.Exit(1)
	}
}

func run(listen, s3Listen, s3TLSListen, accounts, region string) error {
	file, err := os.ReadFile(accounts)
	if err != nil {
		return fmt.Errorf("-accounts: %w", err)
	}
	fake := fakests.New(fakests.Config{Region: region, OnAnswer: printAttempt})
	if err := fake.Load(file); err != nil {
		return fmt.Errorf("-accounts %s: %w", accounts, err)
	}
	s3 := fake.S3()
	s3.OnAnswer = printS3
	ended := make(chan error)
	for _, service := range []struct {
		name, address string
		handler       http.Handler
		tls           *tls.Config
	}{{"sts", listen, fake, nil}, {"s3", s3Listen, s3, nil}, {"s3-tls", s3TLSListen, s3, fakests.SelfSigned()}} {
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
