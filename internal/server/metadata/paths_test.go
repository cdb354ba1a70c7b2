package metadata

import (
	"strings"
	"testing"
)

func TestRoute(t *testing.T) {
	role := func(name string) target { return target{endpoint: endpointCredentials, role: name} }
	only := func(e endpoint) target { return target{endpoint: e} }
	none := only(endpointNone)
	for _, tc := range []struct {
		requestURI string
		want       target
	}{
		{"/latest/api/token", only(endpointToken)},
		{"/latest/api/token/", only(endpointToken)},
		{"//latest///api//token////", only(endpointToken)},
		{"/latest/api/tok/en", none},
		{"/latest/api/token?", none},
		{"/2021-01-03/api/token", none}, // EC2 has it under latest alone

		{"/iam4kube/ready", only(endpointReady)},
		{"/iam4kube/ready?", only(endpointReady)},
		{"/iam4kube/ready?wait=5s&a=b", target{endpoint: endpointReady, query: "wait=5s&a=b"}},
		{"/iam4kube/ready?wait=5s?", target{endpoint: endpointReady, query: "wait=5s?"}},
		{"/iam4kube/ready/", only(endpointReady)},
		{"//iam4kube//ready//?wait=5s//", target{endpoint: endpointReady, query: "wait=5s//"}},
		{"/iam4kube/", none},
		{"/latest/iam4kube/ready", none},

		{"/latest/meta-data/iam/security-credentials", only(endpointRole)},
		{"/latest/meta-data/iam/security-credentials/", only(endpointRole)},
		{"/2009-04-04/meta-data/iam/security-credentials", only(endpointRole)},
		{"/2012-01-12/meta-data/iam/security-credentials/", only(endpointRole)},
		{"/latest/meta-data/iam/security-credentials?", none},
		{"/latest/meta-data/iam/security-credentials//", only(endpointRole)},
		{"//latest/meta-data/iam/security-credentials", only(endpointRole)},
		{"///latest//meta-data///iam////security-credentials/////", only(endpointRole)},
		{"//2012-01-12//meta-data//iam//security-credentials//", only(endpointRole)},
		{"/latest/meta-data/iam/security-credentials//?", none},
		{"/latest/meta-data/iam/", none},
		{"/latest/meta-data/iam/info", only(endpointInfo)},
		{"/2012-01-12/meta-data/iam/info/", only(endpointInfo)},
		{"/latest/meta-data/iam/info/x", none},
		{"/latest/meta-data/iam/info?", none},

		{"/latest/meta-data/iam/security-credentials/app", role("app")},
		{"/2009-04-04/meta-data/iam/security-credentials/app", role("app")},
		{"/latest/meta-data/iam/security-credentials/a+b=c,d.e@f-g_h", role("a+b=c,d.e@f-g_h")},
		{"/latest/meta-data/iam/security-credentials/a%2Bb%3Dc%2Cd.e%40f-g_h", role("a+b=c,d.e@f-g_h")},
		{"/latest/meta-data/iam/security-credentials/a%2bb%3dc%2cd.e%40f-g_h", role("a+b=c,d.e@f-g_h")},
		{"/latest/meta-data/iam/security-credentials/%61pp", role("app")},
		{"/latest/meta-data/iam/security-credentials/%2561pp", role("%61pp")}, // decoded once
		{"/latest/meta-data/iam/security-credentials/team%2Fapp", role("team/app")},
		{"/latest/meta-data/iam/security-credentials/app%00", role("app\x00")},
		{"/latest/meta-data/iam/security-credentials/..", role("..")},
		{"/latest/meta-data/iam/security-credentials/" + strings.Repeat("%41", 64), role(strings.Repeat("A", 64))},
		{"/latest/meta-data/iam/security-credentials/" + strings.Repeat("a", 193), none},
		{"/latest/meta-data/iam/security-credentials/app/", role("app")},
		{"/latest/meta-data/iam/security-credentials//app", role("app")},
		{"//latest//meta-data//iam//security-credentials//app//", role("app")},
		{"/latest/meta-data/iam/security-credentials/%2fapp", role("/app")}, // encoded ones are no slashes
		{"/latest/meta-data/iam/security-credentials/app%2f", role("app/")},
		{"/latest/meta-data/iam/security-credentials//team//app", none},
		{"/latest/meta-data/iam/security-credentials/ /app", none},
		{"/latest/meta-data/iam/security-credentials/./app", none},
		{"/latest/meta-data/iam/security-credentials/team/app", none},
		{"/latest/meta-data/iam/security-credentials/app?", none},
		{"/latest/meta-data/iam/security-credentials/app%", none},
		{"/latest/meta-data/iam/security-credentials/app%zz", none},
		{"/latest/meta-data/iam/security-credentialsapp", none},

		{"/latest/meta-data/placement/availability-zone", only(endpointZone)},
		{"/latest/meta-data/placement/availability-zone/", only(endpointZone)},
		{"/2009-04-04/meta-data/placement/availability-zone/", only(endpointZone)},
		{"/latest/meta-data/placement/availability-zone-id", none},
		{"/latest/meta-data/placement/region", only(endpointRegion)},
		{"/latest/meta-data/placement/region/", only(endpointRegion)},
		{"/latest//meta-data/placement//region", only(endpointRegion)},
		{"/latest/meta-data/placement/", none},

		{"/latest/dynamic/instance-identity/document", only(endpointDocument)},
		{"/2014-11-05/dynamic/instance-identity/document", only(endpointDocument)},
		{"/latest/dynamic/instance-identity/document/", only(endpointDocument)},
		{"//latest/dynamic/instance-identity//document", only(endpointDocument)},
		{"/latest/dynamic/instance-identity/pkcs7", none},

		// A version, and nothing that resembles one.
		{"/1.0/meta-data/iam/security-credentials", none},
		{"/2009-4-4/meta-data/iam/security-credentials", none},
		{"/2009-13-04/meta-data/iam/security-credentials", none},
		{"/2009-02-30/meta-data/iam/security-credentials", none},
		{"/20090404/meta-data/iam/security-credentials", none},
		{"/-009-04-04/meta-data/iam/security-credentials", none},
		{"/2009-04-04T00:00/meta-data/iam/security-credentials", none},
		{"/2009-04-04", none},
		{"/2009-04-0", none},
		{"/latest", none},
		{"/latest/", none},
		{"/latestmeta-data/iam/security-credentials", none},
		{"/LATEST/meta-data/iam/security-credentials", none},
		{"/Latest/meta-data/iam/security-credentials", none},
		{"/latest/latest/meta-data/iam/security-credentials", none},
		{"/latest/2009-04-04/meta-data/iam/security-credentials", none},
		{"/meta-data/iam/security-credentials", none},
		{"latest/meta-data/iam/security-credentials", none},

		// Nothing is decoded or cleaned but slashes and the role's name.
		{"/ /latest/meta-data/iam/security-credentials", none},
		{"//169.254.169.254/latest/meta-data/iam/security-credentials", none},
		{"latest//meta-data/iam/security-credentials", none},
		{`/latest/\/meta-data/iam/security-credentials`, none},
		{"/latest/%2fmeta-data/iam/security-credentials", none},
		{"/latest/./meta-data/iam/security-credentials", none},
		{"/x/../latest/meta-data/iam/security-credentials", none},
		{"/latest/meta-data/iam/info/../security-credentials/app", none},
		{"/latest/meta-data/%69am/security-credentials", none},
		{"/latest/meta-data%2Fiam/security-credentials", none},
		{"/%6catest/meta-data/iam/security-credentials", none},
		{`/latest\meta-data\iam\security-credentials`, none},
		{"/latest/meta-data/iam/security-credentials;a=b", none},
		{"/latest/meta-data/iam/security-credentials#a", none},
		{"http://169.254.169.254/latest/meta-data/iam/security-credentials", none},
		{"/http://169.254.169.254/latest/meta-data/iam/security-credentials", none},
		{"169.254.169.254:80", none},
		{"*", none},
		{"/", none},
		{"//", none},
		{"/" + strings.Repeat("/", 10<<10), none},
		{"http:///latest/meta-data/iam/security-credentials", none},
		{"", none},
		{"?", none},
		{"/" + strings.Repeat("a", 10<<10), none},
	} {
		if got := route(tc.requestURI); got != tc.want {
			t.Errorf("%.100q: got %+v, want %+v", tc.requestURI, got, tc.want)
		}
	}
}
