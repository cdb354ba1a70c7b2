#!/usr/bin/env bash
# containerd: a hosts.toml without a table `host` is refused, and the registry asked by its own name.
#
# `server` in hosts.toml names where the images of a registry come from when no host of the file has
# them, and the fields of a host may stand at the root for it. A file with nothing else, which is all
# that one mirror or a private CA needs, is taken for a broken one. Whoever pulls an image gets no error
# for that: one line in the log, and the registry is asked by the name in the image's reference, as if
# there were no file. An empty table is enough to have the file read.
#
# Seen with github.com/containerd/containerd v1.6.20, which Debian 12 has, and v1.7.28, package
# remotes/docker/config: the lines at the end.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOWORK=off CGO_ENABLED=0
cat > main.go <<'END'
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/remotes/docker/config"
	"github.com/sirupsen/logrus"
)

func main() {
	const server = "server = \"https://mirror.example\"\n"
	for _, file := range []struct{ name, text string }{
		{"server alone", server},
		{"an empty table beside it", server + "[host]\n"},
	} {
		dir, err := os.MkdirTemp("", "hosts-")
		check(err)
		defer os.RemoveAll(dir)
		check(os.Mkdir(filepath.Join(dir, "registry.example"), 0o755))
		check(os.WriteFile(filepath.Join(dir, "registry.example", "hosts.toml"), []byte(file.text), 0o644))
		said := &messages{}
		logrus.AddHook(said)
		hosts, err := config.ConfigureHosts(context.Background(), config.HostOptions{HostDir: config.HostDirFromRoot(dir)})("registry.example")
		check(err)
		if len(said.all) > 0 {
			fmt.Printf("%s: %s\n", file.name, said.all)
		}
		var names []string
		for _, host := range hosts {
			names = append(names, host.Host)
		}
		fmt.Printf("%s: asks %s\n", file.name, names)
	}
}

type messages struct{ all []string }

func (*messages) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

func (m *messages) Fire(e *logrus.Entry) error {
	m.all = append(m.all, fmt.Sprint(e.Message, ": ", e.Data["error"]))
	return nil
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
}
END
for version in v1.6.20 v1.7.28; do
	rm -f go.mod go.sum
	printf 'module finding\n\ngo 1.26.0\n' > go.mod
	go get "github.com/containerd/containerd@$version" 2>log || { cat log; exit 1; }
	go mod tidy 2>log || { cat log; exit 1; }
	go run . 2>/dev/null | sed "s/^/$version, /"
done | tee seen
diff - seen <<'END' && echo "as described" || { echo "that has changed"; exit 1; }
v1.6.20, server alone: [failed to decode hosts.toml: invalid `host` tree]
v1.6.20, server alone: asks [registry.example]
v1.6.20, an empty table beside it: asks [mirror.example]
v1.7.28, server alone: [failed to decode hosts.toml: invalid `host` tree]
v1.7.28, server alone: asks [registry.example]
v1.7.28, an empty table beside it: asks [mirror.example]
END
