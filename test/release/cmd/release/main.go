// Command release makes a release, see package release: `make release`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/iam4kube/iam4kube/test/release"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o release.Options
	flag.StringVar(&o.Version, "version", "", "of the release, for example v1.2.3")
	flag.StringVar(&o.Revision, "revision", "", "the commit")
	flag.StringVar(&o.Registry, "registry", "", "where the images will be, for example registry.example/iam4kube")
	flag.StringVar(&o.Key, "key", "", "file of an Ed25519 private key in PEM; without it nothing is signed")
	created := flag.Int64("created", 0, "seconds since 1970, of the commit")
	platforms := flag.String("platforms", "linux/amd64,linux/arm64", "of the images")
	dir := flag.String("dir", "", "folder to make")
	flag.Parse()
	o.Created, o.Platforms = time.Unix(*created, 0), strings.Split(*platforms, ",")
	if err := release.Make(ctx, o, *dir, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
	fmt.Println(*dir)
}
