package metadata

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
)

// Header names of IMDSv2, in the form that net/http gives them,
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
const (
	headerToken    = "X-Aws-Ec2-Metadata-Token"
	headerTokenTTL = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
)

// proxyHeaders are what HTTP proxies add: RFC 9110 section 7.6.3, RFC 7239, and what came
// before that.
var proxyHeaders = []string{"X-Forwarded-For", "Forwarded", "Via"}

// fromProxy returns the header by which an HTTP proxy says that it sent the request for
// somebody else, empty if there is none. EC2's service refuses those too: an open proxy in
// a pod must not give its credentials away.
func fromProxy(r *http.Request) string {
	for _, name := range proxyHeaders {
		if len(r.Header[name]) > 0 {
			return name
		}
	}
	return ""
}

// hostIsAddress reports whether the Host header is empty or an IP address, with or
// without a port. A name means that a browser was led here by DNS rebinding.
func hostIsAddress(host string) bool {
	if host == "" || host == "169.254.169.254" {
		return true
	}
	if _, err := netip.ParseAddrPort(host); err == nil {
		return true
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host, ok = strings.CutSuffix(inner, "]")
		if !ok {
			return false
		}
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// source is the address that the request came from.
func source(r *http.Request) (netip.Addr, bool) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	return from.Addr().Unmap().WithZone(""), err == nil
}

// tokenAccepted checks the token of a request: one that is there has to be good,
// and with IMDSv1 off there has to be one, but for an init container.
func (s *Server) tokenAccepted(r *http.Request, e endpoint, from netip.Addr, now time.Time) bool {
	tokens := r.Header[headerToken]
	switch len(tokens) {
	case 0:
		s.metrics.version(e, protocolIMDSv1)
		return s.cfg.IMDSv1 || e == endpointReady || e == endpointContainer
	case 1:
		if s.cfg.Tokens.Verify(tokens[0], from, now) {
			s.metrics.version(e, protocolIMDSv2)
			return true
		}
	}
	return false
}

// Protocols by which credentials are handed out.
const (
	protocolIMDSv1    = "imdsv1"
	protocolIMDSv2    = "imdsv2"
	protocolContainer = "container"
)

// protocol is that of a request of the metadata API whose token was accepted.
func protocol(r *http.Request) string {
	if len(r.Header[headerToken]) > 0 {
		return protocolIMDSv2
	}
	return protocolIMDSv1
}

// newToken answers PUT /latest/api/token. It never waits: SDKs give the call a
// second, and the pod need not be known for it.
func (s *Server) newToken(w http.ResponseWriter, r *http.Request, from netip.Addr) answer {
	ttls := r.Header[headerTokenTTL]
	if len(ttls) != 1 {
		return text(http.StatusBadRequest, "iam4kube: the request needs one header "+headerTokenTTL+" with 1 to 21600 seconds")
	}
	ttl, err := strconv.ParseUint(ttls[0], 10, 32)
	if err != nil || ttl < 1 || ttl > imdstoken.MaxTTL {
		return text(http.StatusBadRequest, "iam4kube: the header "+headerTokenTTL+" must be 1 to 21600 seconds")
	}
	token, err := s.cfg.Tokens.Make(from, time.Duration(ttl)*time.Second)
	if err != nil {
		return text(http.StatusServiceUnavailable, "iam4kube: "+err.Error()+"; try again")
	}
	w.Header()[headerTokenTTL] = ttls
	return text(http.StatusOK, token)
}
