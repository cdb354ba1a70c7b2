package clients

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/server/podtoken"
	"github.com/iam4kube/iam4kube/test/clients/programs"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

const (
	relativeURI = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v1/credentials"
	fullURI     = "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23/v1/credentials"
)

// Every client has what the webhook gives to pods, and gets its own pod's credentials: with the
// relative URI by a token, by its address or from the metadata API, as far as it knows the
// protocol, and so do those of the time before tokens.
func TestEveryClientLosesNothingByContainerCredentials(t *testing.T) {
	two, s := containerPods(t, "relative", nil)
	for _, c := range allClients {
		t.Run(c.Name, func(t *testing.T) {
			before := asked(t, s)
			for _, p := range two {
				wantOwn(t, p, c.runWith(t, p, variables(t, p, relativeURI)))
			}
			now := asked(t, s)
			if asks := now.answered > before.answered; asks != c.Container.Asks() {
				t.Errorf("asked for container credentials: %t, want %t", asks, c.Container.Asks())
			}
			if proves, want := now.proven > before.proven, c.Container == programs.Token; proves != want {
				t.Errorf("sent the token: %t, want %t", proves, want)
			}
		})
	}
}

// Where the namespace insists on tokens, those that send it get their own pod's credentials, and
// the others nothing, by whichever way they go on.
func TestEveryClientProvesItselfOrGetsNothing(t *testing.T) {
	two, s := containerPods(t, "full", map[string]string{"iam4kube.io/identity": "token"})
	for _, c := range allClients {
		t.Run(c.Name, func(t *testing.T) {
			before := asked(t, s)
			for _, p := range two {
				if environ := variables(t, p, fullURI); c.Container.Proves() {
					wantOwn(t, p, c.runWith(t, p, environ))
				} else {
					c.wantNothing(t, p, environ...)
				}
			}
			if proves := asked(t, s).proven > before.proven; proves != c.Container.Proves() {
				t.Errorf("sent the token: %t, want %t", proves, c.Container.Proves())
			}
		})
	}
}

// containerPods are two pods of a namespace with these labels, and the server is where both
// protocols look for it.
func containerPods(t *testing.T, namespace string, labels map[string]string) ([]pod, *environment.Server) {
	t.Helper()
	netns.NewFarSide(t)
	catchMetadata(t)
	for _, address := range netns.ContainerAddresses {
		netns.AddLocal(t, address+hostBits(address))
	}
	serveS3(t)
	two := twoPods(t, "container-"+namespace)
	object, err := env.Client.CoreV1().Namespaces().Get(t.Context(), two[0].namespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(object.Labels, labels)
	if _, err := env.Client.CoreV1().Namespaces().Update(t.Context(), object, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return two, serve(t)
}

// variables are those of the webhook, and kubelet's token, for the pod.
func variables(t *testing.T, p pod, uri string) []string {
	t.Helper()
	object, err := env.Client.CoreV1().Pods(p.namespace).Get(t.Context(), p.name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := env.Client.CoreV1().ServiceAccounts(p.namespace).CreateToken(t.Context(), object.Spec.ServiceAccountName, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{podtoken.Audience}, ExpirationSeconds: new(int64(3600)),
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: object.Name, UID: object.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Status.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{uri, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=" + file}
}

// requests for container credentials: those that were answered with some, and those with a token
// that was good.
type requests struct{ answered, proven float64 }

func asked(t *testing.T, s *environment.Server) requests {
	t.Helper()
	return requests{
		answered: s.Metric(t, "iam4kube_http_requests_total", "endpoint", "container", "code", "200"),
		proven: s.Metric(t, "iam4kube_pod_tokens_total", "outcome", "verified") +
			s.Metric(t, "iam4kube_pod_tokens_total", "outcome", "remembered"),
	}
}

// Where there is no IPv4, those that send the token ask fd00:ec2::23 if they are told to, but for
// one that takes no IPv6 address for an agent's, and gets nothing from the metadata API.
func TestClientsProveThemselvesByIPv6(t *testing.T) {
	two, _ := containerPods(t, "ipv6", map[string]string{"iam4kube.io/identity": "token"})
	for _, c := range allClients {
		if !c.Container.Proves() {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			for _, p := range two {
				environ := variables(t, p, "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://[fd00:ec2::23]/v1/credentials")
				if c.Name == "aws-sdk-js-v2" {
					c.wantNothing(t, p, environ...)
				} else {
					wantOwn(t, p, c.runWith(t, p, environ))
				}
			}
		})
	}
}
