package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// pod is a client: one connection at a time from one address. It does next to nothing
// besides reading and writing, because it shares the processors with what is measured.
type pod struct {
	from    netip.Addr
	request []byte
	// want is the one body that is right for this pod.
	want []byte

	conn   net.Conn
	buffer [4096]byte
	head   []byte // of the last answer, in buffer
}

// dial connects from the pod's address.
func (p *pod) dial(ctx context.Context, to string) error {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: p.from.AsSlice()}}
	var err error
	p.conn, err = dialer.DialContext(ctx, "tcp", to)
	return err
}

func (p *pod) close() { _ = p.conn.Close() }

// do sends the request and checks the answer whole.
func (p *pod) do() error {
	if _, err := p.conn.Write(p.request); err != nil {
		return err
	}
	body, err := p.read()
	if err != nil {
		return err
	}
	if !bytes.Equal(body, p.want) {
		return fmt.Errorf("pod %s got another answer than its own: %s", p.from, body)
	}
	return nil
}

// read returns the body of an answer with status 200.
func (p *pod) read() ([]byte, error) {
	header, have := -1, 0
	for {
		n, err := p.conn.Read(p.buffer[have:])
		if err != nil {
			return nil, err
		}
		have += n
		if header < 0 {
			if header = bytes.Index(p.buffer[:have], []byte("\r\n\r\n")); header < 0 {
				continue
			}
			header += 4
			p.head = p.buffer[:header]
		}
		length, err := contentLength(p.head)
		if err != nil {
			return nil, err
		}
		if end := header + length; end == have {
			return p.buffer[header:end], nil
		} else if end < have || end > len(p.buffer) {
			return nil, fmt.Errorf("an answer of %d bytes, of which %d arrived: %s", end, have, p.buffer[:have])
		}
	}
}

func contentLength(header []byte) (int, error) {
	if !bytes.HasPrefix(header, []byte("HTTP/1.1 200 OK\r\n")) {
		return 0, fmt.Errorf("not status 200: %s", header)
	}
	_, rest, found := bytes.Cut(header, []byte("\r\nContent-Length: "))
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	if !found {
		return 0, errors.New("no Content-Length")
	}
	return strconv.Atoi(string(value))
}

// saturate sends one request after the other until the time is over and returns how many
// were answered. reconnect makes a new connection for each.
func (p *pod) saturate(ctx context.Context, to string, until time.Time, reconnect bool) (int, error) {
	n := 0
	for time.Now().Before(until) {
		if reconnect {
			if err := p.dial(ctx, to); err != nil {
				return n, err
			}
		}
		err := p.do()
		if reconnect {
			p.close()
		}
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// pace sends a request at each of count moments, every so often from start on, and
// returns how long each answer took. A request that its predecessor delays counts from
// its own moment.
func (p *pod) pace(start time.Time, every time.Duration, count int) ([]time.Duration, error) {
	took := make([]time.Duration, 0, count)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := range count {
		sent := start.Add(time.Duration(i) * every)
		if wait := time.Until(sent); wait > 0 {
			timer.Reset(wait)
			<-timer.C
			sent = time.Now() // how late a timer fires is not the server's affair
		}
		if err := p.do(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(sent))
	}
	return took, nil
}
