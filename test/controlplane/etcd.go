package controlplane

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// Compact drops etcd's history up to now. An API server that runs does not notice: it
// answers a watch of an old resourceVersion from its own memory (the watch cache). Only
// the next page of a list that began before gets 410; for watches see ExpireWatches.
func (cp *ControlPlane) Compact(ctx context.Context) error {
	// A write outside the API server's keys gives a revision that no object has.
	var put struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	key := base64.StdEncoding.EncodeToString([]byte("controlplane/compacted"))
	if err := cp.callEtcd(ctx, "/v3/kv/put", map[string]any{"key": key, "value": key}, &put); err != nil {
		return err
	}
	compaction := map[string]any{"revision": put.Header.Revision, "physical": true}
	return cp.callEtcd(ctx, "/v3/kv/compaction", compaction, nil)
}

// ExpireWatches breaks every watch in such a way that resuming it from the last
// resourceVersion seen gets 410 Gone ("too old resource version"). The API server is
// killed and started again over a compacted etcd: its watch cache then begins at a
// revision after all that clients can have seen. That is an outage of a few seconds.
func (cp *ControlPlane) ExpireWatches(ctx context.Context) error {
	if err := cp.StopAPIServer(); err != nil {
		return err
	}
	if err := cp.Compact(ctx); err != nil {
		return err
	}
	return cp.StartAPIServer(ctx)
}

// callEtcd uses etcd's gRPC gateway: JSON over HTTP, bytes in base64, int64 as string.
func (cp *ControlPlane) callEtcd(ctx context.Context, path string, request, response any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	url := "http://" + cp.etcdPort.addr() + path
	httpRequest, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(httpRequest)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("etcd: %s: %w", path, err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd: %s: %s: %s", path, answer.Status, content)
	}
	if response == nil {
		return nil
	}
	return json.Unmarshal(content, response)
}
