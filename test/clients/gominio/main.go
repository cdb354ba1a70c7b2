// Command gominio prints the credentials that MinIO's client for Go finds without any
// configuration.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

func main() {
	found, err := credentials.NewIAM("").GetWithContext(&credentials.CredContext{Client: new(http.Client)})
	if err != nil {
		log.Fatal(err)
	}
	err = json.NewEncoder(os.Stdout).Encode(map[string]string{
		"AccessKeyId": found.AccessKeyID, "SecretAccessKey": found.SecretAccessKey, "SessionToken": found.SessionToken,
	})
	if err != nil {
		log.Fatal(err)
	}
}
