// Command demo shows what iam4kube is for, on a real Kubernetes cluster: ordinary pods get the
// IAM roles of their ServiceAccounts, and do not notice that a server goes. AWS STS is the
// fake of the tests. The cluster stays, for `make demo-shell`.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
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
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	ctx     context.Context
	cluster cluster.Cluster
}

func run(ctx context.Context) error {
	c, err := cluster.Default()
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, cluster: c}
	for _, step := range []func() error{d.start, d.install, d.runPods, d.showRoles, d.replaceServer} {
		if err := step(); err != nil {
			return err
		}
	}
	return d.end()
}

var begin = time.Now()

func say(format string, args ...any) {
	fmt.Printf("[%5.1fs] %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
}

func title(text string) { fmt.Printf("\n--- %s\n", text) }

func (d *demo) start() error {
	title("A Kubernetes cluster: two nodes for iam4kube's server, two for everybody")
	archives, err := images.Build(d.ctx, "demo", os.Stdout)
	if err != nil {
		return err
	}
	say("starting it, with iam4kube's images on the nodes")
	return d.cluster.Start(d.ctx, cluster.Options{
		ProxyMode: "nftables", CNI: "ptp", Nodes: cluster.FourNodes(), Images: archives,
	}, os.Stdout)
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
	title("iam4kube, as users install it")
	return d.each(
		"apply -k ../manifests/namespace",
		"apply -k ../manifests/demo",
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
  containers:
    - name: program
      image: iam4kube-test/client:demo
      command: %[4]s
      env:
        - {name: AWS_ENDPOINT_URL_STS, value: "%[5]s"}
        - {name: ROLE, value: %[2]s}
        - {name: HOME, value: /tmp}
      volumeMounts: [{name: usr, mountPath: /usr, readOnly: true}]
  volumes: [{name: usr, hostPath: {path: /usr}}]
`

const (
	awsCLI = `while :; do aws sts get-caller-identity --endpoint-url $AWS_ENDPOINT_URL_STS --query Arn --output text; sleep 1; done`
	boto3  = `
import boto3, os, time
while True:
    sts = boto3.Session(region_name="eu-west-1").client("sts", endpoint_url=os.environ["AWS_ENDPOINT_URL_STS"])
    print(sts.get_caller_identity()["Arn"], flush=True)
    time.sleep(1)`
)

// programs are the pods of each namespace: name and command. The last asks 100 times a second.
var programs = [][]string{
	{"aws-cli", "sh", "-c", awsCLI},
	{"boto3", "python3", "-c", boto3},
	{"go", "/client", "identity"},
	{"load", "/client", "load"},
}

// places are the namespaces, each with its ServiceAccount and the way that its requests go.
var places = []struct{ namespace, account, way string }{
	{"shop", "orders", "rules in the pod, set by the init container that the webhook injects"},
	{"office", "reports", "rules on the node, set by the DaemonSet"},
}

func (d *demo) runPods() error {
	title("Two namespaces, two roles, the same ordinary programs")
	address, err := d.kubectl("", false, "-n", "iam4kube", "get", "service", "iam4kube-demo-sts", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	var manifests strings.Builder
	manifests.WriteString(namespaces)
	for _, place := range places {
		for _, program := range programs {
			command, err := json.Marshal(program[1:])
			if err != nil {
				return err
			}
			fmt.Fprintf(&manifests, pod, place.namespace, place.account, program[0], command, "http://"+address)
		}
	}
	if _, err := d.kubectl(manifests.String(), false, "apply", "-f", "-"); err != nil {
		return err
	}
	return d.each(
		"-n shop wait --for=condition=Ready pods --all --timeout=2m",
		"-n office wait --for=condition=Ready pods --all --timeout=2m",
	)
}

// showRoles waits for the first answers of AWS and shows who it says that each pod is.
func (d *demo) showRoles() error {
	for _, place := range places {
		title(fmt.Sprintf("Namespace %s: %s", place.namespace, place.way))
		for _, program := range programs[:3] {
			line, err := d.firstLine(place.namespace, program[0])
			if err != nil {
				return err
			}
			say("%-8s is %s", program[0], line)
			if want := ":assumed-role/" + place.account + "/" + place.namespace + "@" + place.account; !strings.HasSuffix(line, want) {
				return fmt.Errorf("want …%s", want)
			}
		}
	}
	return nil
}

func (d *demo) firstLine(namespace, pod string) (string, error) {
	ctx, stop := context.WithTimeout(d.ctx, time.Minute)
	defer stop()
	cmd, err := d.cluster.Kubectl(ctx, "-n", namespace, "logs", "--follow", pod, "-c", "program")
	if err != nil {
		return "", err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	defer func() { _ = cmd.Wait() }()
	defer stop()
	var line string
	if _, err := fmt.Fscanln(output, &line); err != nil {
		return "", fmt.Errorf("the log of %s/%s: %w", namespace, pod, err)
	}
	return line, nil
}

// replaceServer lets a replica go while everything asks.
func (d *demo) replaceServer() error {
	title("A replica of the server goes, and nobody notices")
	since := time.Now()
	name, err := d.kubectl("", false, "-n", "iam4kube", "get", "pods", "-l", "app.kubernetes.io/name=iam4kube-server", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return err
	}
	if err := d.each(
		"-n iam4kube delete pod "+name,
		"-n iam4kube rollout status deployment/iam4kube-server --timeout=2m",
	); err != nil {
		return err
	}
	for _, place := range places {
		if err := d.count(place.namespace, since); err != nil {
			return err
		}
	}
	return nil
}

// count sums up what the load of a namespace tells of the time since then.
func (d *demo) count(namespace string, since time.Time) error {
	logs, err := d.kubectl("", false, "-n", namespace, "logs", "load", "-c", "program", "--since-time="+since.Format(time.RFC3339))
	if err != nil {
		return err
	}
	var requests, failed, sdks int
	for line := range strings.Lines(logs) {
		var second struct {
			Counts   map[string]struct{ Done int }
			Failures []any
		}
		if err := json.Unmarshal([]byte(line), &second); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		requests += second.Counts["new"].Done + second.Counts["kept"].Done
		sdks += second.Counts["sdk"].Done
		failed += len(second.Failures)
	}
	say("%s: %d requests for metadata and %d starts of an AWS SDK meanwhile, %d failed", namespace, requests, sdks, failed)
	if requests == 0 || failed > 0 {
		return errors.New("want requests, and none that failed")
	}
	return nil
}

func (d *demo) end() error {
	status, err := d.cluster.Status(d.ctx)
	if err != nil {
		return err
	}
	fmt.Println()
	say("packets that reached the metadata service of the machine: %d", status.Leaks)
	fmt.Printf("\nThe cluster goes on: `make demo-shell` to look around, `make demo-down` to take it down.\n")
	if status.Leaks > 0 {
		return errors.New("want none")
	}
	return nil
}
