package inpod

import (
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

const (
	isReady = "the pod's credentials are ready"
	without = "the pod starts without credentials"
)

// An answer of the server decides at once whether the pod starts, and the reason is told.
func TestAnswersDecide(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	pod := netns.AddPod(t, podIPv4, podIPv6)
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		code   int
		want   []string
	}{
		{"credentials are in memory", ready, 0, []string{isReady}},
		{"no role", answer(http.StatusNotFound, "missing role-annotation: no annotation"), 0, []string{without, "missing role-annotation: no annotation"}},
		{"denied", answer(http.StatusForbidden, "STS refuses the role"), 0, []string{without, "STS refuses the role"}},
		{"another program without a name", func(http.ResponseWriter, *http.Request) {}, failed, []string{"not iam4kube's", "status 200"}},
		{"another program", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Server", "envoy")
			w.Header().Set("X-Iam4kube-Source-Ip", source(r))
			w.WriteHeader(http.StatusServiceUnavailable)
		}, failed, []string{"not iam4kube's", "status 503", `server "envoy"`, "service mesh"}},
		{"a server without the path", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Server", "iam4kube")
			w.WriteHeader(http.StatusNotFound)
		}, failed, []string{"not iam4kube's", "status 404"}},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+serverIPv4+":8080/elsewhere", http.StatusFound)
		}, failed, []string{"not iam4kube's", "status 302"}},
		{"another address of the source", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Server", "iam4kube")
			w.Header().Set("X-Iam4kube-Source-Ip", "10.0.0.99")
			w.WriteHeader(http.StatusNoContent)
		}, failed, []string{"10.0.0.99", podIPv4, "masquerade"}},
		{"an unknown status", answer(http.StatusTeapot, "no tea"), failed, []string{"418", "no tea"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := netns.AddPod(t, serverIPv4)
			var asked atomic.Int64
			listen(t, server, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				tc.answer(w, r)
			})
			start(t, pod, "--to", serviceIPv4).exits(t, tc.code, tc.want...)
			if n := asked.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

// What the server waits for is in --wait; a pod without it starts after that.
func TestServerMayWait(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	// waits answers late: after the time, or after what the client allows if that is less.
	waits := func(most time.Duration, then, late http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			allowed, err := time.ParseDuration(r.URL.Query().Get("wait"))
			if err != nil {
				panic(err)
			}
			timer := time.NewTimer(min(most, allowed))
			defer timer.Stop()
			<-timer.C
			if most <= allowed {
				then(w, r)
			} else {
				late(w, r)
			}
		}
	}
	missing := answer(http.StatusServiceUnavailable, "missing pod: none is known on source address "+podIPv4)
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		flags  []string
		want   []string
	}{
		{"credentials come within it", waits(3*time.Second, ready, missing), []string{"--wait", "5s"}, []string{isReady}},
		{"pieces are still missing after it", waits(time.Hour, ready, missing), []string{"--wait", "300ms"}, []string{without, "missing pod: none is known"}},
		// The time-out of the probe is for a way that does not work. This one does.
		{"it is longer than the time-out", waits(time.Hour, ready, missing), []string{"--wait", "2s", "--probe-timeout", "1s"}, []string{without, "missing pod"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			serve(t, tc.answer)
			start(t, netns.AddPod(t, podIPv4, podIPv6), append(tc.flags, "--to", serviceIPv4)...).exits(t, 0, tc.want...)
		})
	}
}

func TestTooManyWaitingRequestsAreTriedAgain(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	var asked atomic.Int64
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			answer(http.StatusTooManyRequests, "too many requests are waiting")(w, r)
			return
		}
		ready(w, r)
	})
	start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv4).exits(t, 0, isReady)
	if n := asked.Load(); n != 3 {
		t.Errorf("asked %d times", n)
	}
}

// refusing are rules of the node for a Service without endpoints, as during a rollout.
const refusing = `
table ip services {
	counter tries { }
	chain forward {
		type filter hook forward priority 0
		ip daddr 10.96.0.7 tcp dport 80 counter name tries reject
	}
}
`

func TestServerThatComesLaterIsFound(t *testing.T) {
	tries := func(t *testing.T, want string) {
		t.Helper()
		environment.Eventually(t, 30*time.Second, func() error {
			if counter := node.NFT(t, "list", "counter", "ip", "services", "tries"); strings.Contains(counter, want) {
				return fmt.Errorf("%s", counter)
			}
			return nil
		})
	}
	t.Run("refused by the node before", func(t *testing.T) {
		netns.NewFarSide(t)
		nodeRules(t, refusing)
		serve(t, ready)
		c := start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv4)
		tries(t, "packets 0 ")
		nodeRules(t, services)
		c.exits(t, 0, isReady)
	})
	t.Run("no listener before", func(t *testing.T) {
		netns.NewFarSide(t)
		nodeRules(t, services+`table ip services {
			counter tries { }
			chain forward {
				type filter hook forward priority 0
				ip saddr 10.244.1.2 tcp flags rst counter name tries
			}
		}`)
		server := netns.AddPod(t, serverIPv4)
		c := start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv4)
		tries(t, "packets 0 ")
		listen(t, server, ready)
		c.exits(t, 0, isReady)
	})
	t.Run("connections break before", func(t *testing.T) {
		netns.NewFarSide(t)
		nodeRules(t, services)
		var asked atomic.Int64
		serve(t, func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) < 3 {
				panic(http.ErrAbortHandler)
			}
			ready(w, r)
		})
		start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv4).exits(t, 0, isReady)
	})
}

// A way that does not work by the end of the time-out fails the start with what is likely
// to be the cause, and leaves the pod closed.
func TestWayThatDoesNotWorkFailsTheStart(t *testing.T) {
	filter := func(rule string) string {
		return services + "table inet firewall {\n chain forward {\n type filter hook forward priority 0\n" + rule + "\n}\n}\n"
	}
	for _, tc := range []struct {
		name, rules string
		want        []string
	}{
		{"nobody listens", services, []string{"refused", "no ready server"}},
		{"no endpoint", refusing, []string{"refused", "no ready server"}},
		{"dropped on the way there", filter("tcp dport 8080 drop"), []string{"nobody answers", "NetworkPolicy", "socketLB.hostNamespaceOnly=true"}},
		{"dropped on the way back", filter("tcp sport 8080 drop"), []string{"nobody answers", "NetworkPolicy"}},
		{"rejected by a firewall", filter("tcp dport 8080 reject with icmpx admin-prohibited"), []string{"no route", "firewall rejects"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			netns.NewFarSide(t)
			nodeRules(t, tc.rules)
			netns.AddPod(t, serverIPv4, serverIPv6)
			pod := netns.AddPod(t, podIPv4, podIPv6)
			const timeout = time.Second
			begin := time.Now()
			c := start(t, pod, "--to", serviceIPv4, "--probe-timeout", timeout.String())
			c.exits(t, failed, append(tc.want, "169.254.169.254:80", serviceIPv4)...)
			if took := time.Since(begin); took < timeout {
				t.Errorf("gave up after %v", took)
			}
			nft(t, nil, "flush ruleset\n")
			rejected(t, pod, "udp", "169.254.169.254:53")
		})
	}
	t.Run("IPv6, rejected by a firewall", func(t *testing.T) {
		netns.NewFarSide(t)
		nodeRules(t, filter("tcp dport 8080 reject with icmpx admin-prohibited"))
		netns.AddPod(t, serverIPv4, serverIPv6)
		start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv6, "--probe-timeout", "1ms").
			exits(t, failed, "no route", "firewall rejects", "[fd00:ec2::254]:80", serviceIPv6)
	})
}

// The server knows a pod by its address, so an address that is not the pod's is nobody's
// or, worse, somebody else's.
func TestOtherAddressThanThePodsFailsTheStart(t *testing.T) {
	t.Run("masqueraded by the node", func(t *testing.T) {
		netns.NewFarSide(t)
		nodeRules(t, services+`table ip services {
			chain postrouting {
				type nat hook postrouting priority 100
				ip daddr 10.244.1.2 masquerade
			}
		}`)
		serve(t, answer(http.StatusForbidden, "source address is a node's"))
		const gateway = "10.255.255.1" // of netns.Pod
		start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv4).exits(t, failed, "saw the address "+gateway, podIPv4, "masquerade")
	})
	t.Run("leaves by an interface that is not the pod's first", func(t *testing.T) {
		const second = "10.250.0.2"
		netns.NewFarSide(t)
		nodeRules(t, services)
		serve(t, ready)
		pod := netns.AddPod(t, podIPv4, podIPv6)
		inPod(t, pod, "ip", "address", "add", second+"/32", "dev", "eth0")
		inPod(t, pod, "ip", "route", "add", "169.254.0.0/16", "via", "10.255.255.1", "dev", "eth0", "src", second)
		if output, err := exec.Command("ip", "route", "add", second, "dev", pod.Device).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		start(t, pod, "--to", serviceIPv4, "--pod-ips", podIPv4).exits(t, failed, "saw the address "+second, podIPv4, "another interface")
		start(t, pod, "--to", serviceIPv4, "--pod-ips", podIPv4+","+second).exits(t, 0, isReady)
	})
}

func TestProbeIsSentByTheFamiliesThatThePodHas(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	for _, tc := range []struct {
		name           string
		pod, to, flags []string
		probed         string
	}{
		{name: "IPv4 of two", pod: []string{podIPv4}, to: []string{serviceIPv4, serviceIPv6}, probed: "169.254.169.254:80"},
		{name: "IPv6 of two", pod: []string{podIPv6}, to: []string{serviceIPv4, serviceIPv6}, probed: "[fd00:ec2::254]:80"},
		{name: "IPv4 by the pod's status", pod: []string{podIPv4, podIPv6}, to: []string{serviceIPv4, serviceIPv6}, flags: []string{"--pod-ips", podIPv4}, probed: "169.254.169.254:80"},
		{name: "none", pod: []string{podIPv4}, to: []string{serviceIPv6}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i := range tc.to {
				tc.flags = append(tc.flags, "--to", tc.to[i])
			}
			c := start(t, netns.AddPod(t, tc.pod...), tc.flags...)
			c.exits(t, 0)
			lines := c.logs.Lines(isReady)
			if tc.probed == "" {
				if len(lines) != 0 || len(c.logs.Lines(without)) != 1 {
					t.Errorf("want a warning alone: %s", c.logs.String())
				}
			} else if len(lines) != 1 || lines[0]["address"] != tc.probed {
				t.Errorf("want one probe of %s: %s", tc.probed, c.logs.String())
			}
		})
	}
}

// A pod with addresses of both families starts by the one that works; the other one is
// rejected, as it was.
func TestOneOfTwoFamiliesIsEnough(t *testing.T) {
	for _, tc := range []struct{ name, from, to, probed, dead string }{
		{"IPv4", "[fd00:10:244:1::2]:8080", "[fd00:10:244:1::2]:1", "169.254.169.254:80", "[fd00:ec2::254]:80"},
		{"IPv6", "10.244.1.2:8080", "10.244.1.2:1", "[fd00:ec2::254]:80", "169.254.169.254:80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			netns.NewFarSide(t)
			nodeRules(t, strings.ReplaceAll(services, tc.from, tc.to))
			serve(t, ready)
			pod := netns.AddPod(t, podIPv4, podIPv6)
			// Of a minute that a server has, a family that is not alone gets seconds.
			c := start(t, pod, "--to", serviceIPv4, "--to", serviceIPv6)
			c.exits(t, 0, "the pod starts without a way by one family of addresses", "refused: there is no ready server")
			if lines := c.logs.Lines(isReady); len(lines) != 1 || lines[0]["address"] != tc.probed {
				t.Errorf("want one family that is ready: %s", c.logs.String())
			}
			rejected(t, pod, "tcp", tc.dead)
			nft(t, nil, "flush ruleset\n")
			rejected(t, pod, "udp", "169.254.169.254:53")
			rejected(t, pod, "udp", "[fd00:ec2::254]:53")
		})
	}
	t.Run("none", func(t *testing.T) {
		netns.NewFarSide(t)
		nodeRules(t, strings.ReplaceAll(services, "]:8080", "]:1"))
		netns.AddPod(t, serverIPv4, serverIPv6)
		c := start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv4, "--to", serviceIPv6, "--probe-timeout", "300ms")
		c.exits(t, failed, "refused")
	})
	t.Run("the other one is taken for another pod", func(t *testing.T) {
		netns.NewFarSide(t)
		nodeRules(t, services)
		serve(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(source(r), ":") {
				w.Header().Set("X-Iam4kube-Pod", "other/app")
			}
			ready(w, r)
		})
		start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv4, "--to", serviceIPv6, "--pod", "shop/app", "--probe-timeout", "300ms").
			exits(t, failed, "the server takes this pod's address "+podIPv6)
	})
	t.Run("the other one is answered wrongly", func(t *testing.T) {
		netns.NewFarSide(t)
		nodeRules(t, services)
		serve(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(source(r), ":") {
				w.WriteHeader(http.StatusOK)
				return
			}
			ready(w, r)
		})
		start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv4, "--to", serviceIPv6).exits(t, failed, "not iam4kube's", "[fd00:ec2::254]:80")
	})
}

// The reason is told while a pod waits, not only when it has failed.
func TestLateServerIsTold(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, refusing)
	serve(t, ready)
	c := start(t, netns.AddPod(t, podIPv4, podIPv6), "--to", serviceIPv4)
	begin := time.Now()
	line, err := c.logs.Wait(t.Context(), "no server has answered yet, trying on")
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("after %v", took) // pauses and single failures are for nobody to read
	}
	if text, _ := line["error"].(string); !strings.Contains(text, "there is no ready server") || line["address"] != "169.254.169.254:80" {
		t.Errorf("%v", line)
	}
	nodeRules(t, services)
	c.exits(t, 0, isReady)
	if n := len(c.logs.Lines("no server has answered yet, trying on")); n != 1 {
		t.Errorf("told %d times", n)
	}
}

// Where no request by IPv4 is led anywhere, clients have to be told.
func TestIPv6AloneIsTold(t *testing.T) {
	const told = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6"
	for _, tc := range []struct {
		name     string
		pod, to  []string
		variable string
		want     bool
	}{
		{"of the Service", []string{podIPv4, podIPv6}, []string{serviceIPv6}, "", true},
		{"of the pod", []string{podIPv6}, []string{serviceIPv4, serviceIPv6}, "", true},
		{"and the webhook has set it", []string{podIPv6}, []string{serviceIPv6}, told, false},
		{"not", []string{podIPv4, podIPv6}, []string{serviceIPv4, serviceIPv6}, "", false},
		{"not, but IPv4", []string{podIPv4}, []string{serviceIPv4}, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			netns.NewFarSide(t)
			nodeRules(t, services)
			serve(t, ready)
			path, err := node.Program(true)
			if err != nil {
				t.Fatal(err)
			}
			words := mode()
			for _, to := range tc.to {
				words = append(words, "--to", to)
			}
			c := &initContainer{Cmd: exec.CommandContext(t.Context(), path, words...)}
			c.Env = []string{"GORACE=atexit_sleep_ms=0", tc.variable}
			c.start(t, netns.AddPod(t, tc.pod...))
			c.exits(t, 0, isReady)
			if have := strings.Contains(c.logs.String(), told); have != tc.want {
				t.Errorf("told: %v: %s", have, c.logs.String())
			}
		})
	}
}

func TestWithoutProbeNobodyIsAsked(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, func(http.ResponseWriter, *http.Request) { t.Error("asked") })
	pod := netns.AddPod(t, podIPv4, podIPv6)
	start(t, pod, "--to", serviceIPv4, "--probe-timeout", "0").exits(t, 0, "the rules are in")
	reaches(t, pod, metadataIPv4, "server", podIPv4)
}

// A pod that is deleted while it waits ends at once, and not as if the way worked.
func TestSignalEndsTheProbe(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services+"table ip services {\n chain forward {\n type filter hook forward priority 0\n tcp dport 8080 drop\n}\n}\n")
	pod := netns.AddPod(t, podIPv4, podIPv6)
	netns.AddPod(t, serverIPv4)
	c := start(t, pod, "--to", serviceIPv4)
	if _, err := c.logs.Wait(t.Context(), "the rules are in"); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.exits(t, failed, "stopped before a server answered")
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("ended after %v", took)
	}
}
