// Command fakests serves the fake STS of package fakests for demonstrations. It
// prints one line for each request, without secrets.
//
//	fakests -listen 127.0.0.1:4566 -accounts accounts.json
//
// The file holds {"keys": [{"accessKeyID", "secretAccessKey", "arn"}…], "roles":
// [{"arn", "maxSessionDuration", "trust": {"principals", "externalID",
// "sessionNames", "webIdentities"}}…]}.
package main

import (
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
	flag.Parse()
	if err := run(*listen, *accounts, *region); err != nil {
		fmt.Fprintln(os.Stderr, "fakests:", err)
		os.Exit(1)
	}
}

func run(listen, accounts, region string) error {
	file, err := os.ReadFile(accounts)
	if err != nil {
		return fmt.Errorf("-accounts: %w", err)
	}
	fake := fakests.New(fakests.Config{Region: region, OnAnswer: printAttempt})
	if err := fake.Load(file); err != nil {
		return fmt.Errorf("-accounts %s: %w", accounts, err)
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("-listen: %w", err)
	}
	fmt.Printf("fakests: listening on http://%s\n", listener.Addr())
	server := &http.Server{Handler: fake, ReadHeaderTimeout: 10 * time.Second}
	return server.Serve(listener)
}

func printAttempt(a fakests.Attempt) {
	fmt.Printf("%s %s role=%s session=%s outcome=%s issued=%s\n",
		a.Time.UTC().Format(time.RFC3339), a.Action, a.RoleARN, a.SessionName, a.Outcome, a.IssuedAccessKeyID)
}
