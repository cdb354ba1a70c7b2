package main

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// identity is an ordinary program that uses AWS: the SDK finds credentials and region itself.
func identity(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for ctx.Err() == nil {
		configuration, err := config.LoadDefaultConfig(ctx, config.WithEC2IMDSRegion())
		if err == nil {
			var who *sts.GetCallerIdentityOutput
			if who, err = sts.NewFromConfig(configuration).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}); err == nil {
				fmt.Println(*who.Arn)
			}
		}
		if err != nil {
			fmt.Println("failed:", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}
