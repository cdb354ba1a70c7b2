package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
)

const (
	// sdksPerSecond are SDKs that start and look for credentials, by their default chain.
	sdksPerSecond = 2
	// within is what one may take: more than the server lets a request wait.
	within = 20 * time.Second
)

// The kinds of what is begun: requests on connections of their own and on kept ones, in
// equal shares, and SDKs.
const (
	newConnection  = "new"
	keptConnection = "kept"
	goSDK          = "sdk"
)

// Second is what came of what was begun in the second from Start. It is told when all of it
// has ended.
type Second struct {
	Start time.Time
	// Late is how many milliseconds too late something was begun at most: for so long, this
	// program was not given a processor.
	Late     int64
	Counts   map[string]Count
	Failures []Failure `json:",omitempty"`
}

// Count of one kind.
type Count struct {
	Done int
	// Slowest in milliseconds.
	Slowest int64
}

// Failure of one that was begun At, after Milliseconds.
type Failure struct {
	At           time.Time
	Milliseconds int64
	Kind, Error  string
}

type second struct {
	sync.WaitGroup

	mutex  sync.Mutex
	report Second
}

func (s *second) run(kind string, f func() error) {
	s.Go(func() {
		start := time.Now()
		err := f()
		took := time.Since(start).Milliseconds()
		s.mutex.Lock()
		defer s.mutex.Unlock()
		count := s.report.Counts[kind]
		s.report.Counts[kind] = Count{count.Done + 1, max(count.Slowest, took)}
		if err != nil {
			s.report.Failures = append(s.report.Failures, Failure{start, took, kind, err.Error()})
		}
	})
}

// load asks so many times a second, each begun on time, whatever the ones before do, until ctx
// ends; it tells of the last seconds then, too.
func load(ctx context.Context, requestsPerSecond int) {
	fresh := &http.Client{Timeout: within, Transport: &http.Transport{DisableKeepAlives: true}}
	kept := &http.Client{Timeout: within, Transport: &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute}}
	var told sync.WaitGroup
	defer told.Wait()
	var output sync.Mutex
	// What ctx would cut goes on.
	begun := context.WithoutCancel(ctx)
	for start := time.Now(); ctx.Err() == nil; start = start.Add(time.Second) {
		now := &second{report: Second{Start: start, Counts: map[string]Count{}}}
		late := int64(0)
		for i := range requestsPerSecond {
			due := start.Add(time.Duration(i) * time.Second / time.Duration(requestsPerSecond))
			if !until(ctx, due) {
				break
			}
			late = max(late, time.Since(due).Milliseconds())
			client, kind := fresh, newConnection
			if i%2 == 1 {
				client, kind = kept, keptConnection
			}
			// All that an SDK asks for, in turn.
			now.run(kind, func() error { return part(begun, client, i/2%3) })
			if i*sdksPerSecond%requestsPerSecond < sdksPerSecond {
				now.run(goSDK, func() error { _, err := sdk(begun); return err })
			}
		}
		told.Go(func() {
			now.Wait()
			output.Lock()
			defer output.Unlock()
			now.report.Late = late
			_ = json.NewEncoder(os.Stdout).Encode(&now.report)
		})
	}
}

// until waits for a moment, not at all for one that has been: what could not be begun in time
// is made up for. It is false if ctx ended before.
func until(ctx context.Context, moment time.Time) bool {
	timer := time.NewTimer(time.Until(moment))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// part asks for a token, the role, or credentials without a token, as one client would, or for
// container credentials.
func part(ctx context.Context, client *http.Client, which int) error {
	if url := containerURL(); url != "" {
		return container(ctx, client, url)
	}
	switch which {
	case 0:
		_, err := ask(ctx, client, http.MethodPut, base+"/latest/api/token", "")
		return err
	case 1:
		_, err := ask(ctx, client, http.MethodGet, roles, "")
		return err
	}
	document, err := ask(ctx, client, http.MethodGet, roles+os.Getenv("ROLE"), "")
	if err != nil {
		return err
	}
	_, err = accessKeyID(document)
	return err
}

// sdk is an unmodified AWS SDK, from its first request to the credentials.
func sdk(ctx context.Context) (credentials aws.Credentials, err error) {
	ctx, stop := context.WithTimeout(ctx, within)
	defer stop()
	configuration, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return credentials, err
	}
	credentials, err = configuration.Credentials.Retrieve(ctx)
	if err == nil && credentials.AccessKeyID == "" {
		err = errors.New("the SDK got empty credentials")
	}
	return credentials, err
}
