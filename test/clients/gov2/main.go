// Command gov2 prints the credentials and the region that the AWS SDK for Go, version 2,
// finds without any configuration, and how long each of -times tries for credentials
// took. Each try is that of a program which has just started: nothing is cached but the
// connection.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

func main() {
	times := flag.Int("times", 0, "further tries, whose times are printed")
	flag.Parse()
	if err := run(context.Background(), *times); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, times int) error {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithEC2IMDSRegion())
	if err != nil {
		return err
	}
	found, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return err
	}
	took := make([]time.Duration, times)
	for i := range took {
		start := time.Now()
		// A new client has no session token yet.
		provider := ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = imds.NewFromConfig(cfg) })
		if _, err := provider.Retrieve(ctx); err != nil {
			return err
		}
		took[i] = time.Since(start)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"AccessKeyId": found.AccessKeyID, "SecretAccessKey": found.SecretAccessKey,
		"SessionToken": found.SessionToken, "Region": cfg.Region, "Took": took,
	})
}
