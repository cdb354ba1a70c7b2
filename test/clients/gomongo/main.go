// Command gomongo prints the credentials with which MongoDB's driver for Go logs in by
// MONGODB-AWS. This is the driver's own chain: a login would need a server.
package main

import (
	"context"
	"encoding/json"
	"log"
	"net/http"
	"os"

	"go.mongodb.org/mongo-driver/x/mongo/driver/auth/creds"
)

func main() {
	found, err := creds.NewAWSCredentialProvider(new(http.Client)).Cred.GetWithContext(context.Background())
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
