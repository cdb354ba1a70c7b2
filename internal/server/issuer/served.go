package issuer

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// errUnreachable: from here nobody can tell what AWS reads.
var errUnreachable = errors.New("cannot be read from here")

const (
	// readTimeout is AWS's for each document.
	readTimeout = 5 * time.Second
	// maxDocument is far above the hundred keys that IAM takes at most.
	maxDocument = 1 << 20
)

// reader reads what the issuer's URL serves. It follows no redirect, because nobody says that
// AWS does.
var reader = &http.Client{
	Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       readTimeout,
}

// served returns the IDs of the keys that AWS finds at the issuer's URL. Its error says what is
// wrong there, or wraps errUnreachable.
func served(ctx context.Context, client *http.Client, issuerURL string) (map[string]bool, error) {
	var discovery configuration
	address := issuerURL + "/" + PathConfiguration
	if err := read(ctx, client, address, &discovery); err != nil {
		return nil, err
	}
	if discovery.Issuer != issuerURL {
		return nil, fmt.Errorf("%s names the issuer %.300q, want %q", address, discovery.Issuer, issuerURL)
	}
	var set jose.JSONWebKeySet
	if err := read(ctx, client, discovery.Keys, &set); err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, k := range set.Keys {
		public, ok := k.Key.(*rsa.PublicKey)
		if !ok {
			continue
		}
		// The ID has to be that of the very key.
		if id, err := thumbprint(public); err == nil && id == k.KeyID && k.Algorithm == string(jose.RS256) {
			ids[id] = true
		}
	}
	return ids, nil
}

func read(ctx context.Context, client *http.Client, address string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return fmt.Errorf("%.300q is not a URL", address)
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxDocument))
	switch {
	case err != nil:
		return fmt.Errorf("%s %w: %w", address, errUnreachable, err)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s answers with HTTP status %d", address, response.StatusCode)
	case json.Unmarshal(body, into) != nil:
		return fmt.Errorf("%s is not the JSON that server issuer prints", address)
	}
	return nil
}
