package main

import (
	"os"
	"path/filepath"
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
	for _, command := range [][]string{
		{"iam4kube", "why", "pod/go", "-n", places[0].namespace},
		{"iam4kube", "check", "--wait", "1m"},
	} {
		if _, err := d.kubectl("", true, command...); err != nil {
			return err
		}
	}
	return nil
}

// commands are what to type next.
const commands = "There: `kubectl iam4kube check`, `kubectl iam4kube why pod/go -n shop`, `kubectl iam4kube who orders`, `kubectl iam4kube trust shop/orders`."
