#!/usr/bin/env bash
# google/nftables: a monitor that is asked for deletions alone is never told of any.
#
# AddGenerationalMonitor with WithMonitorAction(MonitorActionDel) hands over nothing when a table
# is deleted, while the same monitor with MonitorActionAny does: the kernel ends each transaction
# with a message of its own (NEWGEN), by which the generational monitor knows that it is complete,
# and the filter for deletions leaves that message out.
#
# Seen with github.com/google/nftables v0.3.0, in a network namespace of its own:
#   MonitorActionAny: told of the deletion
#   MonitorActionDel: nothing in 2 s
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export GOWORK=off CGO_ENABLED=0
cat > go.mod <<'END'
module finding

go 1.26.0
END
cat > main.go <<'END'
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/google/nftables"
)

// told is whether a monitor for this action hears that a table was deleted.
func told(action nftables.MonitorAction) bool {
	monitor := nftables.NewMonitor(nftables.WithMonitorAction(action), nftables.WithMonitorObject(nftables.MonitorObjectTables))
	listener, changes := must(nftables.New()), must(nftables.New())
	table := changes.AddTable(&nftables.Table{Name: "finding", Family: nftables.TableFamilyIPv4})
	check(changes.Flush())
	events := must(listener.AddGenerationalMonitor(monitor))
	defer func() { _ = monitor.Close() }()
	changes.DelTable(table)
	check(changes.Flush())
	for {
		select {
		case e := <-events:
			for _, change := range e.Changes {
				if change.Type == nftables.MonitorEventTypeDelTable {
					return true
				}
			}
		case <-time.After(2 * time.Second):
			return false
		}
	}
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func main() {
	any, del := told(nftables.MonitorActionAny), told(nftables.MonitorActionDel)
	fmt.Printf("MonitorActionAny: told of the deletion: %v\nMonitorActionDel: told of the deletion: %v\n", any, del)
	if !any || del {
		fmt.Println("that has changed")
		os.Exit(1)
	}
	fmt.Println("as described")
}
END
go get github.com/google/nftables@v0.3.0 2>log || { cat log; exit 1; }
go mod tidy 2>log || { cat log; exit 1; }
go list -m github.com/google/nftables
go build -o finding .
unshare --user --map-root-user --net ./finding
