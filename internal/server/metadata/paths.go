package metadata

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// endpoint is one line of the API.
type endpoint int

const (
	endpointToken endpoint = iota
	endpointRole
	endpointCredentials
	endpointInfo
	endpointZone
	endpointRegion
	endpointDocument
	endpointContainer
	endpointReady
	endpointNone
	endpoints = iota
)

// String is the endpoint as a metric's label.
func (e endpoint) String() string {
	return [endpoints]string{"token", "role", "credentials", "info", "zone", "region", "document", "container", "ready", "none"}[e]
}

// method is the only one that the endpoint has.
func (e endpoint) method() string {
	if e == endpointToken {
		return http.MethodPut
	}
	return http.MethodGet
}

// target is what a request asks for.
type target struct {
	endpoint endpoint
	// role is the name in the path of endpointCredentials.
	role string
	// query is what follows the question mark of endpointReady.
	query string
	// protocol is that by which credentials are asked for.
	protocol string
}

const (
	pathToken = "/latest/api/token"
	pathReady = "/iam4kube/ready"
	pathRoles = "/meta-data/iam/security-credentials"

	// maxEscapedName is the length of the longest name of a role, 64 characters, with each
	// of them escaped. A longer one is no role's, so no request waits with it.
	maxEscapedName = 3 * 64
)

// route compares the request target as the client sent it: nothing is decoded,
// cleaned or redirected, so a path is served only if it is spelt out here. There are two
// exceptions. Slashes count as on EC2, where clients of all ages ask //latest and
// document/. And the role's name, which some clients escape, is decoded and then compared
// with a single name.
func route(requestURI string) target {
	path, query, hasQuery := strings.Cut(requestURI, "?")
	path = withoutEmptySegments(path)
	switch {
	case path == pathReady:
		return target{endpoint: endpointReady, query: query}
	case hasQuery:
		return target{endpoint: endpointNone}
	case path == pathToken:
		return target{endpoint: endpointToken}
	case path == pathContainer:
		return target{endpoint: endpointContainer}
	}
	switch rest := withoutVersion(path); rest {
	case pathRoles:
		return target{endpoint: endpointRole}
	case "/meta-data/iam/info":
		return target{endpoint: endpointInfo}
	case "/meta-data/placement/availability-zone":
		return target{endpoint: endpointZone}
	case "/meta-data/placement/region":
		return target{endpoint: endpointRegion}
	case "/dynamic/instance-identity/document":
		return target{endpoint: endpointDocument}
	default:
		escaped, found := strings.CutPrefix(rest, pathRoles+"/")
		name, err := url.PathUnescape(escaped)
		if !found || err != nil || strings.Contains(escaped, "/") || len(escaped) > maxEscapedName {
			return target{endpoint: endpointNone}
		}
		return target{endpoint: endpointCredentials, role: name}
	}
}

// withoutEmptySegments makes one of each run of slashes, and none of a final one.
func withoutEmptySegments(path string) string {
	if strings.Contains(path, "//") {
		last := byte(0)
		path = string(slices.DeleteFunc([]byte(path), func(b byte) bool {
			again := b == '/' && last == '/'
			last = b
			return again
		}))
	}
	return strings.TrimSuffix(path, "/")
}

// withoutVersion cuts /latest or a dated version such as /2009-04-04, and returns
// an empty path if neither is there.
func withoutVersion(path string) string {
	if rest, ok := strings.CutPrefix(path, "/latest"); ok {
		return rest
	}
	const date = len("/2009-04-04")
	if len(path) < date {
		return ""
	}
	if _, err := time.Parse("/"+time.DateOnly, path[:date]); err != nil {
		return ""
	}
	return path[date:]
}
