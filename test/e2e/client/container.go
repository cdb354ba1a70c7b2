package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
)

// containerURL is where AWS's variables tell this program to ask, "" without them:
// https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
func containerURL() string {
	if uri := os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); uri != "" {
		return "http://169.254.170.2" + uri
	}
	return os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
}

// containerRequest has the token as it is in the file now: kubelet renews it.
func containerRequest(ctx context.Context, url string) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", string(token))
	return request, nil
}

// container wants the credentials of this pod's role.
func container(ctx context.Context, client *http.Client, url string) error {
	request, err := containerRequest(ctx, url)
	if err != nil {
		return err
	}
	document, err := send(client, request)
	if err != nil {
		return err
	}
	var d struct {
		AccessKeyId string
		RoleARN     string `json:"RoleArn"`
	}
	if err := json.Unmarshal([]byte(document), &d); err != nil {
		return err
	}
	if role := os.Getenv("ROLE"); d.AccessKeyId == "" || !strings.HasSuffix(d.RoleARN, "/"+role) {
		return fmt.Errorf("GET %s: %q of role %q, want %s", url, d.AccessKeyId, d.RoleARN, role)
	}
	return nil
}
