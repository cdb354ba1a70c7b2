package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
)

const (
	// requestsPerSecond are begun on time, whatever the ones before do.
	requestsPerSecond = 200
	// sdksPerSecond are SDKs that start and look for credentials, by their default chain.
	sdksPerSecond = 5
	// within is what one may take: more than the server lets a request wait.
	within = 20 * time.Second
)

// Second is what came of what was begun in a second. It is told when all of it has ended.
type Second struct {
	// Unix time.
	Second int64
	// Requests on connections of their own and on kept ones, in equal shares.
	New, Kept Count
	SDK       Count
}

// Count of one kind.
type Count struct {
	Done   int
	Failed int
	// Slowest in milliseconds.
	Slowest int64
	// Error is the first one.
	Error string `json:",omitempty"`
}

type second struct {
	sync.WaitGroup

	mutex  sync.Mutex
	report Second
}

func (s *second) run(count *Count, f func() error) {
	s.Go(func() {
		start := time.Now()
		err := f()
		s.mutex.Lock()
		defer s.mutex.Unlock()
		count.Done++
		count.Slowest = max(count.Slowest, time.Since(start).Milliseconds())
		if err != nil {
			count.Failed++
			if count.Error == "" {
				count.Error = err.Error()
			}
		}
	})
}

// load asks until ctx ends, and tells of the last seconds then, too.
func load(ctx context.Context) {
	fresh := &http.Client{Timeout: within, Transport: &http.Transport{DisableKeepAlives: true}}
	kept := &http.Client{Timeout: within, Transport: &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute}}
	var told sync.WaitGroup
	defer told.Wait()
	var output sync.Mutex
	ticker := time.NewTicker(time.Second / requestsPerSecond)
	defer ticker.Stop()
	for ctx.Err() == nil {
		now := &second{report: Second{Second: time.Now().Unix()}}
		for i := 0; i < requestsPerSecond && ctx.Err() == nil; i++ {
			<-ticker.C
			client, count := fresh, &now.report.New
			if i%2 == 1 {
				client, count = kept, &now.report.Kept
			}
			// All that an SDK asks for, in turn. It goes on when ctx has ended: nothing is cut.
			now.run(count, func() error { return part(context.WithoutCancel(ctx), client, i/2%3) })
			if i%(requestsPerSecond/sdksPerSecond) == 0 {
				now.run(&now.report.SDK, func() error { return sdk(context.WithoutCancel(ctx)) })
			}
		}
		told.Go(func() {
			now.Wait()
			output.Lock()
			defer output.Unlock()
			_ = json.NewEncoder(os.Stdout).Encode(&now.report)
		})
	}
}

// part asks for a token, the role, or credentials without a token, as one client would.
func part(ctx context.Context, client *http.Client, which int) error {
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
func sdk(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, within)
	defer stop()
	configuration, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return err
	}
	credentials, err := configuration.Credentials.Retrieve(ctx)
	if err == nil && credentials.AccessKeyID == "" {
		err = errors.New("the SDK got empty credentials")
	}
	return err
}
