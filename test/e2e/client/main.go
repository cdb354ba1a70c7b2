// Command client asks for credentials in the pods of the end-to-end test, as AWS clients do.
//
//	client wait          until SIGTERM: for pods that other programs are run in
//	client once          one line of JSON: Answer
//	client sdk           the same, of what an AWS SDK finds
//	client get URL       the answer's status and body
//	client load N        asks N times a second; one line of JSON for each: Second
//	client knock [IP]    the same: Knocks
//	client identity      who AWS says that it is, once a second, through AWS_ENDPOINT_URL_STS
//
// Where AWS's variables for container credentials are set, load, sdk and identity use these; once
// does not.
//
// It can only be used in the cluster of package cluster: it takes the metadata address as what
// the pod's node makes of it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const (
	metadata = "169.254.169.254"
	base     = "http://" + metadata
	roles    = base + "/latest/meta-data/iam/security-credentials/"
)

// Answer is what a pod gets.
type Answer struct {
	Role        string
	AccessKeyID string
	Region      string
	// SourceIP is the address that the server saw, Addresses are the pod's.
	SourceIP  string
	Addresses []string
	// Provider is what the SDK calls the way by which it found them.
	Provider string
	Seconds  float64
	Error    string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 2 && (len(os.Args) != 3 || os.Args[1] != "get" && os.Args[1] != "load" && os.Args[1] != "knock") {
		fmt.Fprintln(os.Stderr, "client: wait, once, sdk, get URL, load N, knock [IP] or identity?")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "wait":
		<-ctx.Done()
	case "once":
		tell(once(ctx))
	case "sdk":
		tell(found(ctx))
	case "get":
		if _, err := ask(ctx, http.DefaultClient, http.MethodGet, os.Args[2], ""); err != nil {
			fmt.Println(err)
		}
	case "load":
		requestsPerSecond, err := strconv.Atoi(append(os.Args, "")[2])
		if err != nil || requestsPerSecond < 1 {
			fmt.Fprintln(os.Stderr, "client: load how many times a second?")
			os.Exit(2)
		}
		load(ctx, requestsPerSecond)
	case "identity":
		identity(ctx)
	case "knock":
		knock(ctx, append(os.Args, metadata)[2])
	}
}

func tell(answer Answer) {
	_ = json.NewEncoder(os.Stdout).Encode(answer)
	if answer.Error != "" {
		os.Exit(1)
	}
}

// found is what the default chain of an unmodified AWS SDK finds.
func found(ctx context.Context) (answer Answer) {
	start := time.Now()
	credentials, err := sdk(ctx)
	if err != nil {
		answer.Error = err.Error()
	}
	answer.AccessKeyID, answer.Provider, answer.Seconds = credentials.AccessKeyID, credentials.Source, time.Since(start).Seconds()
	return answer
}

// once asks as an SDK does that has just started, and what the server saw of it.
func once(ctx context.Context) (answer Answer) {
	start := time.Now()
	client := &http.Client{Timeout: 20 * time.Second}
	fail := func(err error) Answer {
		answer.Error = err.Error()
		return answer
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return fail(err)
	}
	for _, a := range addresses {
		if ip := a.(*net.IPNet).IP; ip.IsGlobalUnicast() {
			answer.Addresses = append(answer.Addresses, ip.String())
		}
	}
	token, err := ask(ctx, client, http.MethodPut, base+"/latest/api/token", "")
	if err != nil {
		return fail(err)
	}
	if answer.Role, err = ask(ctx, client, http.MethodGet, roles, token); err != nil {
		return fail(err)
	}
	document, err := ask(ctx, client, http.MethodGet, roles+answer.Role, token)
	if err != nil {
		return fail(err)
	}
	answer.Seconds = time.Since(start).Seconds()
	if answer.AccessKeyID, err = accessKeyID(document); err != nil {
		return fail(err)
	}
	if answer.Region, err = ask(ctx, client, http.MethodGet, base+"/latest/meta-data/placement/region", token); err != nil {
		return fail(err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/iam4kube/ready", http.NoBody)
	if err != nil {
		return fail(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return fail(err)
	}
	response.Body.Close()
	answer.SourceIP = response.Header.Get("X-Iam4kube-Source-Ip")
	return answer
}

// ask is an IMDSv2 request, one without a token as in IMDSv1, or the one for a token.
func ask(ctx context.Context, client *http.Client, method, url, token string) (body string, err error) {
	request, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return "", err
	}
	if method == http.MethodPut {
		request.Header.Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
		// Any number of them does no harm (RFC 9110, section 9.2.2), so that one that meets the end
		// of a kept connection is sent again, as SDKs do. To net/http, this says it, and is not sent.
		request.Header["X-Idempotency-Key"] = []string{}
	} else if token != "" {
		request.Header.Set("X-Aws-Ec2-Metadata-Token", token)
	}
	return send(client, request)
}

// send takes nobody's answer but iam4kube's, and only 200.
func send(client *http.Client, request *http.Request) (body string, err error) {
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", request.Method, request.URL, response.Status, content)
	}
	if err == nil && response.Header.Get("Server") != "iam4kube" {
		err = fmt.Errorf("%s %s: answered by %q, not by iam4kube: %s", request.Method, request.URL, response.Header.Get("Server"), content)
	}
	return string(content), err
}

func accessKeyID(document string) (string, error) {
	var d struct{ Code, AccessKeyId, Message string }
	if err := json.Unmarshal([]byte(document), &d); err != nil {
		return "", err
	}
	if d.Code != "Success" {
		return "", fmt.Errorf("credentials: %s: %s", d.Code, d.Message)
	}
	return d.AccessKeyId, nil
}
