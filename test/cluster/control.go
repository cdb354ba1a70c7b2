package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketFile is where the supervisor takes orders.
const socketFile = "control"

// Status is what the supervisor says of the cluster.
type Status struct {
	// Leaks is how many packets have arrived beyond the nodes at the metadata service or at the
	// addresses of container credentials.
	Leaks int
	// Nodes are those that run: name and PID in the supervisor's PID namespace.
	Nodes map[string]int
	// Programs are those of the control plane that run.
	Programs []string
}

// Status of a running cluster.
func (c Cluster) Status(ctx context.Context) (Status, error) {
	var status Status
	text, err := c.ask(ctx, http.MethodGet, "/status", "")
	if err != nil {
		return status, err
	}
	err = json.Unmarshal(text, &status)
	return status, err
}

// PowerOff ends a node with all that runs on it, without a word to anybody.
func (c Cluster) PowerOff(ctx context.Context, node string) error {
	return c.order(ctx, "/node/off", node)
}

// PowerOn starts a node that was powered off.
func (c Cluster) PowerOn(ctx context.Context, node string) error {
	return c.order(ctx, "/node/on", node)
}

// Kill ends a program of the control plane, such as kube-apiserver.
func (c Cluster) Kill(ctx context.Context, program string) error {
	return c.order(ctx, "/program/off", program)
}

// Restart starts a program of the control plane that was killed.
func (c Cluster) Restart(ctx context.Context, program string) error {
	return c.order(ctx, "/program/on", program)
}

func (c Cluster) order(ctx context.Context, path, name string) error {
	_, err := c.ask(ctx, http.MethodPost, path, name)
	return err
}

func (c Cluster) ask(ctx context.Context, method, path, name string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.Dir, socketFile))
		},
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path+"?name="+url.QueryEscape(name), http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("no cluster is running in %s: %w", c.Dir, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s", path, name, body)
	}
	return body, err
}

// supervisorPID is 0 if none is running. The kernel says who has the socket, so the PID
// cannot be that of another process that came later.
func (c Cluster) supervisorPID() (pid int, err error) {
	connection, err := net.Dial("unix", filepath.Join(c.Dir, socketFile))
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	raw, err := connection.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	err = errors.Join(err, raw.Control(func(fd uintptr) {
		var peer *unix.Ucred
		if peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	}))
	return pid, err
}

// serveControl is the supervisor's side.
func (s *supervisor) serveControl() error {
	listener, err := net.Listen("unix", filepath.Join(s.Dir, socketFile))
	if err != nil {
		return err
	}
	orders := http.NewServeMux()
	orders.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		status, err := s.status()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(status)
	})
	for path, act := range map[string]func(name string) error{
		"POST /node/off":    s.stopNode,
		"POST /node/on":     s.startNode,
		"POST /program/off": s.stopProgram,
		"POST /program/on":  s.startProgram,
	} {
		orders.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if err := act(r.FormValue("name")); err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
			}
		})
	}
	go func() { _ = http.Serve(listener, orders) }()
	return nil
}
