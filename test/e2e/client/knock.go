package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// knockEvery is how often a new connection asks for the role, othersEvery how often all
	// other ways are tried.
	knockEvery, othersEvery = 100 * time.Millisecond, 500 * time.Millisecond
	// patience with a connection that is neither refused nor answered.
	patience = time.Second
)

// Knocks are a second's attempts to reach an address: how many of each outcome.
type Knocks struct {
	// Unix time.
	Second int64
	// HTTP is by what came of a new connection to port 80: iam4kube, refused, timeout, or what
	// else there was.
	HTTP map[string]int
	// Slowest refusal of those, in milliseconds.
	Slowest int64
	// Others are what came of other ports, UDP, ICMP and SCTP: closed, silent, or open.
	Others map[string]int
}

const icmp = "ip4:icmp"

// others are the ways that lead nowhere on a node with iam4kube, and to the metadata service
// of the machine on one without.
var others = []struct{ network, port string }{
	{"tcp", ":22"},
	{"tcp", ":443"},
	{"tcp", ":8080"},
	{"udp", ":53"},
	{"udp", ":80"},
	{"udp", ":123"},
	{icmp, ""},
	{"ip4:132", ""},
}

// knock tries every way to the address until ctx ends.
func knock(ctx context.Context, address string) {
	var running sync.WaitGroup
	defer running.Wait()
	ticker := time.NewTicker(knockEvery)
	defer ticker.Stop()
	// What ctx would cut goes on.
	begun := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		now := &knocks{report: Knocks{Second: time.Now().Unix(), HTTP: map[string]int{}, Others: map[string]int{}}}
		for i := range int(time.Second / knockEvery) {
			<-ticker.C
			now.Go(func() { now.http(begun, address) })
			if i%int(othersEvery/knockEvery) == 0 {
				for _, way := range others {
					now.Go(func() { now.other(way.network, address+way.port) })
				}
			}
		}
		running.Go(func() {
			now.Wait()
			_ = json.NewEncoder(os.Stdout).Encode(&now.report) // one write
		})
	}
}

type knocks struct {
	sync.WaitGroup

	mutex  sync.Mutex
	report Knocks
}

func (k *knocks) http(ctx context.Context, address string) {
	start := time.Now()
	outcome := func() string {
		response, err := knockOnce(ctx, address)
		if err != nil {
			return failure(err)
		}
		defer response.Body.Close()
		switch {
		case response.Header.Get("Server") != "iam4kube":
			body, _ := io.ReadAll(response.Body)
			return fmt.Sprintf("answered by another: %s", body)
		case address != metadata && response.StatusCode != http.StatusOK:
			return "iam4kube: " + response.Status
		}
		return "iam4kube"
	}()
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.report.HTTP[outcome]++
	if outcome == "refused" {
		k.report.Slowest = max(k.report.Slowest, time.Since(start).Milliseconds())
	}
}

// knockOnce asks for the role, or with the token where container credentials are.
func knockOnce(ctx context.Context, address string) (*http.Response, error) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, roles, http.NoBody)
	if address != metadata {
		request, err = containerRequest(ctx, "http://"+address+"/v1/credentials")
	}
	if err != nil {
		return nil, err
	}
	return client.Do(request)
}

func failure(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}

// other sends something and waits for what comes back.
func (k *knocks) other(network, address string) {
	outcome := func() string {
		connection, err := net.DialTimeout(network, address, patience)
		if err == nil {
			defer connection.Close()
			// A whole ICMP echo request; for the others any bytes.
			if _, err = connection.Write([]byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}); err == nil {
				_ = connection.SetReadDeadline(time.Now().Add(patience))
				err = answered(network, connection)
			}
		}
		switch {
		case err == nil:
			return network + " " + address + " open"
		case failure(err) == "timeout":
			return "silent"
		}
		return "closed"
	}()
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.report.Others[outcome]++
}

// answered waits for what comes back. A raw socket of ICMP is given whatever ICMP comes from the
// address: as errors about connections that were translated do, which the kernel translates back.
func answered(network string, connection net.Conn) error {
	packet := make([]byte, 1<<10)
	for {
		n, err := connection.Read(packet)
		if err != nil || network != icmp || isEchoReply(packet[:n]) {
			return err
		}
	}
}

// isEchoReply reads an ICMP message behind an IPv4 header (RFC 791, RFC 792).
func isEchoReply(packet []byte) bool {
	const echoReply = 0
	if len(packet) == 0 {
		return false
	}
	header := int(packet[0]&0xf) * 4
	return len(packet) > header && packet[header] == echoReply
}
