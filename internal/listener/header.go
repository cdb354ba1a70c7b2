package listener

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"time"
)

// headerConn is a connection of a client that speaks HTTP/1. A header that is not complete
// is kept here, as the bytes that it is, and is nothing yet to net/http, which would take
// twelve times as much memory for it. What comes whole in one read, as nearly all do,
// passes without a copy.
//
// How long it may take to the next request and to the end of an answer is bounded here, too,
// by the time of the listener's last sweep: net/http asks for the time thrice more for that.
//
// A request of HTTP/1.1 without a Host header gets an empty one: EC2 answers it, and
// clients rely on that (aws-c-auth before 0.6.24), but net/http refuses it before a handler
// is asked.
type headerConn struct {
	*conn
	timeouts Timeouts

	// kept are bytes that were read and not passed on, of which the first ready may be.
	kept  []byte
	ready int
	head  head
	// body is how many bytes of a request's body are still to come. With endless, everything
	// is its body: its length is not known here, and the connection ends with its answer.
	body    int64
	endless bool
	// tooLarge is a header over its bounds: net/http reads on until its own bound, and refuses
	// it in its turn among the answers.
	tooLarge bool
	// begun: a part of a header is there.
	begun bool
	// asked is how many requests have no answer yet, guarded by mu.
	asked int
}

// Timeouts of a connection with plain HTTP/1; 0: none.
type Timeouts struct {
	// Idle is from an answer to the next request, Answer from a request's header to the end of
	// its answer.
	Idle, Answer time.Duration
}

func newHeaderConn(c *conn, timeouts Timeouts) *headerConn {
	c.mu.Lock() // the listener sweeps it already
	defer c.mu.Unlock()
	c.header = c.listener.now() + HeaderTimeout
	return &headerConn{conn: c, timeouts: timeouts}
}

var errNoProgress = errors.New("listener: no progress")

// Read implements net.Conn.
func (c *headerConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case c.ready > 0:
			n := copy(p, c.kept[:c.ready])
			c.ready -= n
			if c.kept = c.kept[n:]; len(c.kept) == 0 {
				c.kept = nil
			} else if c.ready == 0 {
				c.classify()
			}
			return n, nil
		case c.tooLarge:
			for i := range p {
				p[i] = 'x'
			}
			return len(p), nil
		case c.endless:
			return c.conn.Read(p)
		case c.body > 0:
			n, err := c.conn.Read(p[:min(int64(len(p)), c.body)])
			c.body -= int64(n)
			return n, err
		}
		if n, err := c.readHeader(p); n > 0 || err != nil {
			return n, err
		}
	}
}

// readHeader reads once. It returns what may be passed on of what came, if that came into p;
// otherwise it is kept.
func (c *headerConn) readHeader(p []byte) (int, error) {
	if len(c.kept) > 0 {
		if cap(c.kept)-len(c.kept) < 512 {
			c.kept = append(make([]byte, 0, min(2*cap(c.kept)+1024, MaxHeaderBytes+1024)), c.kept...)
		}
		n, err := c.conn.Read(c.kept[len(c.kept):cap(c.kept)])
		c.kept = c.kept[:len(c.kept)+n]
		c.classify()
		return 0, errIfNothing(n, err)
	}
	n, err := c.conn.Read(p)
	if n == 0 {
		return 0, errIfNothing(n, err)
	}
	data := p[:n]
	if c.head.scan(data) && !c.head.edited() && len(data) <= c.head.end+int(min(c.head.length, MaxHeaderBytes)) {
		c.body, c.head = c.head.length-int64(len(data)-c.head.end), head{}
		c.headerEnds()
		return n, nil
	}
	c.kept = append(c.kept, data...)
	c.classify()
	return 0, nil
}

// errIfNothing is a read's error, unless something was read: then it comes again.
func errIfNothing(n int, err error) error {
	if n > 0 {
		return nil
	}
	if err == nil {
		return errNoProgress
	}
	return err
}

// classify finds out what of the kept bytes may be passed on, and edits it.
func (c *headerConn) classify() {
	switch {
	case c.endless:
		c.ready = len(c.kept)
		return
	case c.body > 0:
		c.ready = int(min(c.body, int64(len(c.kept))))
		c.body -= int64(c.ready)
		return
	}
	whole := c.head.scan(c.kept)
	switch {
	case whole && c.head.end <= MaxHeaderBytes && c.head.lines <= maxHeaderLines:
		c.kept = c.head.edit(c.kept)
		c.ready, c.body, c.endless = c.head.end, c.head.length, c.head.endless
		c.head = head{}
		c.headerEnds()
	case len(c.kept) > MaxHeaderBytes, c.head.lines > maxHeaderLines:
		c.tooLarge, c.ready = true, min(c.head.firstLine, MaxHeaderBytes)
		c.kept = c.kept[:c.ready:c.ready]
		c.headerEnds()
	default:
		c.headerBegins()
	}
}

// headerBegins is that the bytes so far are a part of a header.
func (c *headerConn) headerBegins() {
	if c.begun {
		return
	}
	c.begun = true
	c.mu.Lock()
	defer c.mu.Unlock()
	c.header = c.listener.at(time.Now().Add(HeaderTimeout))
}

// headerEnds is that a request begins.
func (c *headerConn) headerEnds() {
	c.begun = false
	c.mu.Lock()
	defer c.mu.Unlock()
	c.header, c.write = never, c.after(c.timeouts.Answer)
	c.asked++
}

// SetWriteDeadline implements net.Conn. That an answer has ended is known by its having no
// deadline any more.
func (c *headerConn) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() {
		return c.conn.SetWriteDeadline(t)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked--
	switch {
	case c.asked > 0: // by a client that did not wait for the answer
		c.write = c.after(c.timeouts.Answer)
	case c.header == never:
		c.header = c.after(c.timeouts.Idle)
		fallthrough
	default:
		c.write = never
	}
	c.enforce()
	return nil
}

func (c *headerConn) after(timeout time.Duration) time.Duration {
	if timeout == 0 {
		return never
	}
	return c.listener.now() + timeout
}

// head is what is known of a header of which more bytes come, line by line: RFC 9112,
// section 2.2. Whatever is unusual in what tells the length of the body makes it endless:
// net/http decides what it is.
type head struct {
	// lastLine is where the line begins that is not complete yet, lines how many are, and
	// emptyLine and end are where the header's last one is, 0 as long as that has not come.
	lastLine, lines, emptyLine, end int
	// firstLine is the length of the request line with its end.
	firstLine          int
	http11, host, long bool
	length             int64
	endless            bool
}

// scan reads the complete lines of data that it has not read yet, and returns whether the
// header is complete.
func (h *head) scan(data []byte) bool {
	for h.end == 0 && h.lines <= maxHeaderLines {
		n := bytes.IndexByte(data[h.lastLine:], '\n')
		if n < 0 {
			return false
		}
		line := bytes.TrimSuffix(data[h.lastLine:h.lastLine+n], []byte{'\r'})
		h.lastLine += n + 1
		switch {
		case len(line) == 0:
			h.emptyLine, h.end = h.lastLine-n-1, h.lastLine
		case h.lines == 0:
			h.firstLine, h.http11 = h.lastLine, bytes.HasSuffix(line, []byte(" HTTP/1.1"))
			h.lines++
		default:
			h.field(line)
			h.lines++
		}
	}
	return h.end > 0
}

// field reads one line of the header.
func (h *head) field(line []byte) {
	name, value, _ := bytes.Cut(line, []byte{':'})
	switch {
	case line[0] == ' ', line[0] == '\t': // a line that goes on, RFC 9112, section 5.2
		h.endless = true
	case bytes.EqualFold(name, []byte("Host")):
		h.host = true
	case bytes.EqualFold(name, []byte("Content-Length")):
		length, err := strconv.ParseUint(string(bytes.Trim(value, " \t")), 10, 62)
		h.endless = h.endless || h.long || err != nil
		h.long, h.length = true, int64(length)
	case bytes.EqualFold(name, []byte("Transfer-Encoding")):
		h.endless = true
	}
}

func (h *head) addsHost() bool { return h.http11 && !h.host }

func (h *head) edited() bool {
	return h.addsHost() || h.endless || h.end > MaxHeaderBytes || h.lines > maxHeaderLines
}

// edit adds the lines that are missing. They are the last ones: a first line that goes on
// another stays the error that it is.
func (h *head) edit(data []byte) []byte {
	var added []byte
	if h.addsHost() {
		added = append(added, "Host: \r\n"...)
	}
	if h.endless {
		added = append(added, "Connection: close\r\n"...)
	}
	if len(added) == 0 {
		return data
	}
	h.end += len(added)
	return slices.Insert(data, h.emptyLine, added...)
}
