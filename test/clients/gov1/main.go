// Command gov1 prints the credentials and the region that the AWS SDK for Go, version 1,
// finds without any configuration.
package main

import (
	"encoding/json"
	"log"
	"os"

	"github.com/aws/aws-sdk-go/aws/ec2metadata" //nolint:staticcheck // out of support, and in many programs
	"github.com/aws/aws-sdk-go/aws/session"     //nolint:staticcheck // as above
)

func main() {
	s, err := session.NewSession()
	if err != nil {
		log.Fatal(err)
	}
	found, err := s.Config.Credentials.Get()
	if err != nil {
		log.Fatal(err)
	}
	region, err := ec2metadata.New(s).Region()
	if err != nil {
		log.Fatal(err)
	}
	err = json.NewEncoder(os.Stdout).Encode(map[string]string{
		"AccessKeyId": found.AccessKeyID, "SecretAccessKey": found.SecretAccessKey,
		"SessionToken": found.SessionToken, "Region": region,
	})
	if err != nil {
		log.Fatal(err)
	}
}
