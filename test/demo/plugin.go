package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// plugin is where `make` puts the plugin of kubectl, which is found in the PATH.
const plugin = "../bin"

// check lets the plugin look at all of it: it fails if something is broken.
func (d *demo) check() error {
	title("What kubectl iam4kube says")
	bin, err := filepath.Abs(plugin)
	if err != nil {
		return err
	}
	if err := os.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return err
	}
	// A replica has just been replaced.
	for _, command := range []string{"iam4kube why pod/go -n " + places[0].namespace, "iam4kube check --wait 1m"} {
		cmd, err := d.cluster.Kubectl(d.ctx, strings.Fields(command)...)
		if err != nil {
			return err
		}
		say("$ kubectl %s", command)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("kubectl %s: %w", command, err)
		}
	}
	return nil
}

// commands are what to type next.
const commands = "There: `kubectl iam4kube check`, `kubectl iam4kube why pod/go -n shop`, `kubectl iam4kube who orders`, `kubectl iam4kube trust shop/orders`."
