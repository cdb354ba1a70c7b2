// Command demo shows what iam4kube is for, on a real Kubernetes cluster: ordinary pods get the
// IAM roles of their ServiceAccounts, and do not notice that a server goes. AWS STS is the
// fake of the tests. The cluster stays, for `make demo-shell`.
package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/iam4kube/iam4kube/test/cluster"
	"github.com/iam4kube/iam4kube/test/images"
)

func main() {
	cluster.Init()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	c, err := cluster.Default()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	d := &demo{ctx: ctx, cluster: c, watch: startWatch()}
	err = d.run()
	d.watch.stop()
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	d.leave(err)
	if err != nil {
		os.Exit(1)
	}
}

type demo struct {
	ctx     context.Context
	cluster cluster.Cluster
	watch   *watch
	// addresses of the pods are watched as soon as there is a cluster.
	addresses *addresses
	// since is when what counts began: what was before has been judged.
	since time.Time
	// loaded is whether there may be pods that ask all the time.
	loaded bool
}

// run tries a step again that fails, unless it shows a failure of iam4kube: on a machine that is
// busy with something else everything is late, and what waits for it gives up.
func (d *demo) run() error {
	archives, err := d.build()
	if err != nil {
		return err
	}
	d.since = time.Now()
	start := func() error { return d.start(archives) }
	for _, step := range []func() error{start, d.install, d.runPods, d.showRoles, d.showKeyless, d.replaceServer, d.check, d.end} {
		if err := again(d.ctx, func() error { return d.watched(step) }, func(attempt int, err error) {
			say("%v", err)
			say("trying it again: attempt %d of %d", attempt, attempts)
			d.since = time.Now()
		}); err != nil {
			return err
		}
	}
	return nil
}

// watched has in the step's error how busy the machine was meanwhile.
func (d *demo) watched(step func() error) error {
	d.watch.reset()
	before := readProcessors()
	err := step()
	if err == nil {
		return nil
	}
	worst, _ := d.watch.seen()
	return fmt.Errorf("%w\nMeanwhile the demo itself was up to %d ms late; %s", err, worst.Milliseconds(), before.until(readProcessors()))
}

const (
	attempts = 3
	// pause is longer than the load's requests take, so that all that hung has ended.
	pause = 30 * time.Second
)

// again tries a step until it succeeds, fails by our fault, or has had its attempts.
func again(ctx context.Context, step func() error, failed func(next int, err error)) error {
	for attempt := 1; ; attempt++ {
		err := step()
		if err == nil || errors.Is(err, errOurs) || ctx.Err() != nil {
			return err
		}
		if attempt == attempts {
			return fmt.Errorf("%d attempts, the last: %w", attempts, err)
		}
		failed(attempt+1, err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

var begin = time.Now()

func say(format string, args ...any) {
	fmt.Printf("[%5.1fs] %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
}

func title(text string) { fmt.Printf("\n--- %s\n", text) }

// build has what it made in the cache, whatever comes after it.
func (d *demo) build() (archives []string, err error) {
	title("A Kubernetes cluster: two nodes for iam4kube's server, two for everybody")
	return images.Build(d.ctx, "demo", os.Stdout)
}

func (d *demo) start(archives []string) (err error) {
	say("starting it, with iam4kube's images on the nodes")
	if err := d.cluster.Start(d.ctx, cluster.Options{
		ProxyMode: "nftables", CNI: "ptp", Nodes: cluster.FourNodes(), Images: archives,
	}, os.Stdout); err != nil {
		return err
	}
	d.addresses, err = watchAddresses(d.ctx, d.cluster.Kubeconfig())
	return err
}

// kubectl shows the command and what it prints, if that is wanted.
func (d *demo) kubectl(input string, show bool, args ...string) (string, error) {
	cmd, err := d.cluster.Kubectl(d.ctx, args...)
	if err != nil {
		return "", err
	}
	say("$ kubectl %s", strings.Join(args, " "))
	var output, failure bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &output, &failure
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, failure.String())
	}
	if show {
		fmt.Print(output.String())
	}
	return output.String(), nil
}

// each shows what the commands that only look print.
func (d *demo) each(commands ...string) error {
	for _, command := range commands {
		if _, err := d.kubectl("", strings.Contains(command, " get "), strings.Fields(command)...); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) install() error {
	title("iam4kube, as users install it who have no AWS key")
	if err := d.each("apply -k ../manifests/namespace"); err != nil {
		return err
	}
	if err := d.publish(); err != nil {
		return err
	}
	return d.each(
		"apply -k ../manifests/demo",
		"-n iam4kube rollout status deployment/iam4kube-demo-sts --timeout=2m",
		"-n iam4kube rollout status deployment/iam4kube-server --timeout=2m",
		"-n iam4kube rollout status deployment/iam4kube-webhook --timeout=2m",
		"-n iam4kube rollout status daemonset/iam4kube-ip2service --timeout=2m",
		"-n iam4kube get pods -o wide",
	)
}

//go:embed pods.yaml
var namespaces string

// pod is an ordinary program in an ordinary pod.
const pod = `
---
apiVersion: v1
kind: Pod
metadata: {namespace: %[1]s, name: %[3]s}
spec:
  serviceAccountName: %[2]s
  terminationGracePeriodSeconds: 1
  %[6]s
  containers:
    - name: program
      image: registry.invalid/iam4kube-test/client:demo
      command: %[4]s
      resources: {requests: {cpu: 100m}} # what measures must not be the first that waits
      env:
        - {name: AWS_ENDPOINT_URL_STS, value: "%[5]s"}
        - {name: ROLE, value: %[2]s}
        - {name: HOME, value: /tmp}
      volumeMounts: [{name: usr, mountPath: /usr, readOnly: true}]
  volumes: [{name: usr, hostPath: {path: /usr}}]
`

// These start anew or nearly so each time, which keeps processors busy, and stay with the cluster.
const (
	awsCLI = `while :; do aws sts get-caller-identity --endpoint-url $AWS_ENDPOINT_URL_STS --query Arn --output text; sleep 10; done`
	// For a region, a pod on the host's network would ask the node's metadata service.
	onHost = `AWS_REGION=eu-west-1 exec /client identity`
	boto3  = `
import boto3, os, time
while True:
    sts = boto3.Session(region_name="eu-west-1").client("sts", endpoint_url=os.environ["AWS_ENDPOINT_URL_STS"])
    print(sts.get_caller_identity()["Arn"], flush=True)
    time.sleep(10)`
)

// program is one pod of a namespace.
type program struct {
	pod     string
	command []string
	// account, if it is not the namespace's.
	account string
	// spec is what else is in the pod's.
	spec string
}

// programs are the pods of each namespace. Load asks 100 times a second; its deadline ends that
// also when nobody is left to do so.
var programs = []program{
	{pod: "aws-cli", command: []string{"sh", "-c", awsCLI}},
	{pod: "boto3", command: []string{"python3", "-c", boto3}},
	{pod: "go", command: []string{"/client", "identity"}},
	{pod: "load", command: []string{"/client", "load", "100"}, spec: "activeDeadlineSeconds: 3600"},
}

// place is a namespace with its ServiceAccount and the way that its requests go.
type place struct {
	namespace, account, way string
	// more are pods that the others do not have.
	more []program
}

var places = []place{
	{"shop", "orders", "rules in the pod, set by the init container that the webhook injects", nil},
	{"office", "reports", "rules on the node, set by the DaemonSet", nil},
	{
		"backup", "archive", "a token in the pod, which proves who it is, also on the host's network",
		[]program{{pod: "on-host", command: []string{"sh", "-c", onHost}, account: "disks", spec: "hostNetwork: true"}},
	},
}

func (p place) programs() []program { return slices.Concat(programs, p.more) }

// accountOf is whose role a pod has.
func (p place) accountOf(of program) string { return cmp.Or(of.account, p.account) }

func (d *demo) runPods() error {
	title("Three namespaces, four roles, the same ordinary programs")
	address, err := d.kubectl("", false, "-n", "iam4kube", "get", "service", "iam4kube-demo-sts", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	var manifests strings.Builder
	manifests.WriteString(namespaces)
	d.loaded = true
	for _, place := range places {
		for _, program := range place.programs() {
			command, err := json.Marshal(program.command)
			if err != nil {
				return err
			}
			fmt.Fprintf(&manifests, pod, place.namespace, place.accountOf(program), program.pod, command, "http://"+address, program.spec)
		}
	}
	if _, err := d.kubectl(manifests.String(), false, "apply", "-f", "-"); err != nil {
		return err
	}
	var waits []string
	for _, place := range places {
		waits = append(waits, "-n "+place.namespace+" wait --for=condition=Ready pods --all --timeout=2m")
	}
	return d.each(waits...)
}

// showRoles waits for the first answers of AWS and shows who it says that each pod is.
func (d *demo) showRoles() error {
	var failures []failure
	for _, place := range places {
		title(fmt.Sprintf("Namespace %s: %s", place.namespace, place.way))
		for _, program := range place.programs() {
			if program.pod == "load" {
				continue // it says how often, not who
			}
			arn, failed, err := d.identity(place.namespace, program.pod)
			if err != nil {
				return err
			}
			failures = append(failures, failed...)
			say("%-8s is %s", program.pod, arn)
			account := place.accountOf(program)
			if want := ":assumed-role/" + account + "/" + place.namespace + "@" + account; !strings.HasSuffix(arn, want) {
				return fmt.Errorf("%w: want …%s", errOurs, want)
			}
		}
	}
	_, delays := d.watch.seen()
	return d.addresses.judge(failures, "the programs' first attempts", delays)
}

// identity is what AWS first says that a program is, and what the program said before.
func (d *demo) identity(namespace, pod string) (arn string, failures []failure, err error) {
	ctx, stop := context.WithTimeout(d.ctx, time.Minute)
	defer stop()
	cmd, err := d.cluster.Kubectl(ctx, "-n", namespace, "logs", "--follow", "--timestamps", pod, "-c", "program", "--since-time="+d.since.Format(time.RFC3339))
	if err != nil {
		return "", nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	defer func() { _ = cmd.Wait() }()
	defer stop()
	arn, failures = readIdentity(namespace+"/"+pod, output)
	if arn == "" {
		_, delays := d.watch.seen()
		return "", nil, cmp.Or(
			d.addresses.judge(failures, "the program's attempts", delays),
			fmt.Errorf("%s/%s has said nothing yet", namespace, pod))
	}
	return arn, failures, nil
}

// replaceServer lets a replica go while everything asks.
func (d *demo) replaceServer() error {
	title("A replica of the server goes, and nobody notices")
	for _, place := range places {
		if _, err := d.load(place.namespace, func(all []second) bool { return len(all) > 0 }); err != nil {
			return err
		}
	}
	since := time.Now()
	name, err := d.kubectl("", false, "-n", "iam4kube", "get", "pods", "-l", "app.kubernetes.io/name=iam4kube-server", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return err
	}
	if err := d.each(
		"-n iam4kube delete pod "+name+" --timeout=2m",
		"-n iam4kube rollout status deployment/iam4kube-server --timeout=2m",
	); err != nil {
		return err
	}
	return d.count(since, time.Now())
}

// count sums up what the load of all namespaces tells of a stretch of time.
func (d *demo) count(from, to time.Time) error {
	var sum tally
	for _, place := range places {
		all, err := d.load(place.namespace, func(all []second) bool { return told(all, to) })
		if err != nil {
			return err
		}
		if all[0].Start.After(from) {
			return fmt.Errorf("the load of %s has begun anew, so what it asked before is not known", place.namespace)
		}
		var here tally
		here.count(place.namespace, all, from, to)
		say("%s: %d requests for credentials and the like, and %d starts of an AWS SDK meanwhile, %d failed; this machine was up to %d ms late",
			place.namespace, here.requests, here.sdks, len(here.failures), here.worst.Milliseconds())
		if here.requests == 0 || here.sdks == 0 {
			return fmt.Errorf("the load of %s asked for nothing", place.namespace)
		}
		sum.add(here)
	}
	// All places are on one machine.
	_, delays := d.watch.seen()
	return verdict(sum.failures, fmt.Sprintf("%d requests", sum.requests+sum.sdks), append(delays, sum.delays...))
}

// load is what a namespace's load has told, once that is enough.
func (d *demo) load(namespace string, enough func([]second) bool) ([]second, error) {
	ctx, stop := context.WithTimeout(d.ctx, 2*time.Minute)
	defer stop()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		cmd, err := d.cluster.Kubectl(ctx, "-n", namespace, "logs", "load", "-c", "program")
		if err != nil {
			return nil, err
		}
		var failure bytes.Buffer
		cmd.Stderr = &failure
		log, err := cmd.Output()
		if all := readSeconds(string(log)); err == nil && enough(all) {
			// The pod's own log goes with it.
			return all, os.WriteFile(filepath.Join(d.logs(), "load-"+namespace+".log"), log, 0o644)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("the load of %s has not told enough: %w %s", namespace, cmp.Or(err, ctx.Err()), failure.String())
		}
	}
}

func (d *demo) logs() string { return filepath.Join(d.cluster.Dir, "log") }

func (d *demo) end() error {
	status, err := d.cluster.Status(d.ctx)
	if err != nil {
		return err
	}
	fmt.Println()
	say("packets that reached the metadata service of the machine: %d", status.Leaks)
	if status.Leaks > 0 {
		return fmt.Errorf("%w: want none", errOurs)
	}
	return nil
}

// leave ends what keeps the machine busy, whatever the demo came to, and says what to do next.
func (d *demo) leave(err error) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(d.ctx), time.Minute)
	defer stop()
	_, gone := d.cluster.Status(ctx)
	if gone == nil && d.loaded {
		d.endLoad(ctx)
	}
	fmt.Println()
	if gone == nil {
		fmt.Println("The cluster goes on: `make demo-shell` to look around, `make demo-down` to take it down.")
	} else {
		fmt.Println("No cluster is running; `make demo-down` removes what is left of it.")
	}
	if err != nil {
		fmt.Println("`make demo` begins anew, with all that has been built.")
	}
	fmt.Printf("Logs: %s\n", d.logs())
	if err == nil {
		fmt.Println(commands)
	}
}

func (d *demo) endLoad(ctx context.Context) {
	last := &demo{ctx: ctx, cluster: d.cluster}
	for _, place := range places {
		if _, err := last.kubectl("", false, "-n", place.namespace, "delete", "pod", "load", "--ignore-not-found", "--wait=false"); err != nil {
			say("%v\nThe load of %s goes on until then, or for an hour.", err, place.namespace)
		}
	}
}
