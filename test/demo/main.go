// Command demo shows what iam4kube is for: the AWS CLI, with no configuration at all,
// gets the IAM role of its pod's ServiceAccount. API server, server and CLI are real and
// run in a network namespace of their own, the pods in namespaces below it; AWS STS is
// the fake of the tests.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
	"github.com/iam4kube/iam4kube/test/netns"
)

const (
	metadata   = "169.254.169.254"
	stsAddress = "192.0.2.1" // of nobody else (RFC 5737)
	namespace  = "shop"
	node       = "node-1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	_, controlPlaneErr := controlplane.Build(ctx) // while modules can be fetched
	program, err := environment.Build("cmd/server")
	if err := errors.Join(controlPlaneErr, err); err != nil {
		return err
	}
	netns.Enter()
	say("starting kube-apiserver and etcd")
	d := &demo{ctx: ctx}
	if d.env, err = environment.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.env.Stop()) }()
	stop, err := d.serve(ctx, program)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, show := range []func() error{d.twoRoles, d.roleThatComesLater} {
		if err := show(); err != nil {
			return err
		}
	}
	fmt.Println()
	say("stopping the server by SIGTERM, then kube-apiserver and etcd")
	return nil
}

var start = time.Now()

func say(format string, args ...any) {
	fmt.Printf("[%5.1fs] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
}

type demo struct {
	ctx context.Context
	env *environment.Environment
}

// serve starts the fake STS where pods reach it, and the server on the metadata address.
func (d *demo) serve(ctx context.Context, program string) (stop func() error, err error) {
	kubeconfig := filepath.Join(os.TempDir(), fmt.Sprintf("iam4kube-demo-%d.kubeconfig", os.Getpid()))
	config, err := d.env.ServiceAccountConfig(ctx, environment.Namespace, environment.ServiceAccount)
	if err != nil {
		return nil, err
	}
	err = errors.Join(netns.MakeLocal(metadata+"/32"), netns.MakeLocal(stsAddress+"/32"),
		controlplane.WriteKubeconfig(kubeconfig, config))
	if err != nil {
		return nil, err
	}
	sts := &http.Server{Addr: stsAddress + ":80", Handler: d.env.STS}
	go func() { panic(sts.ListenAndServe()) }() // to the end of the process
	say("starting the server on %s:80, with the rights of manifests/base/server-rbac.yaml", metadata)
	log := &environment.Logs{}
	command := exec.Command(program, "--listen-on", metadata+":80", "--aux-listen-on", "127.0.0.1:0",
		"--kubeconfig", kubeconfig, "--max-wait", "3s", "--drain", "0s")
	command.Stderr = log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	stop = func() error {
		_ = command.Process.Signal(syscall.SIGTERM) // Wait tells if it has ended already
		return errors.Join(command.Wait(), os.Remove(kubeconfig))
	}
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := log.Wait(soon, "serving"); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

// twoRoles is the main job.
func (d *demo) twoRoles() error {
	fmt.Println("\n--- Two pods, two ServiceAccounts, two roles")
	// The CLI takes its region from the pod's node.
	err := errors.Join(d.env.CreateNamespace(d.ctx, namespace),
		d.env.CreateNode(d.ctx, controlplane.Node{Name: node, Region: "us-east-1", Zone: "us-east-1a"}),
		d.account("orders"), d.annotate("orders"), d.account("billing"), d.annotate("billing"))
	orders, ordersErr := d.pod("orders", "10.244.0.1")
	billing, billingErr := d.pod("billing", "10.244.0.2")
	if err := errors.Join(err, ordersErr, billingErr); err != nil {
		return err
	}
	return errors.Join(d.aws(orders, "orders-0"), d.aws(billing, "billing-0"))
}

// roleThatComesLater shows what a pod is told whose ServiceAccount has no role.
func (d *demo) roleThatComesLater() error {
	fmt.Println("\n--- A pod whose ServiceAccount names no role, until somebody annotates it")
	err := d.account("reports")
	pod, podErr := d.pod("reports", "10.244.0.3")
	if err := errors.Join(err, podErr); err != nil {
		return err
	}
	return errors.Join(ask(pod, "reports-0"), d.annotate("reports"), d.aws(pod, "reports-0"))
}

func (d *demo) account(name string) error {
	say("ServiceAccount %s/%s: created", namespace, name)
	return d.env.CreateServiceAccount(d.ctx, controlplane.ServiceAccount{Namespace: namespace, Name: name})
}

// annotate makes a role that only this ServiceAccount can use, and gives it to it.
func (d *demo) annotate(account string) error {
	arn := d.env.NewRole(func(r *fakests.Role) {
		r.ARN = "arn:aws:iam::" + environment.Account + ":role/" + account
		r.Trust.SessionNames = []string{namespace + "@" + account}
	})
	say("ServiceAccount %s/%s: annotated %s=%s", namespace, account, role.AnnotationARN, arn)
	patch := fmt.Appendf(nil, `{"metadata": {"annotations": {%q: %q}}}`, role.AnnotationARN, arn)
	_, err := d.env.Client.CoreV1().ServiceAccounts(namespace).Patch(d.ctx, account, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// pod creates a pod and what a node would make of it, a network namespace.
func (d *demo) pod(account, address string) (*netns.Pod, error) {
	say("Pod %s/%s-0: running, with address %s", namespace, account, address)
	_, err := d.env.CreatePod(d.ctx, controlplane.Pod{
		Namespace: namespace, Name: account + "-0", ServiceAccount: account, Node: node, IPs: []string{address},
	})
	pod, podErr := netns.NewPod(address)
	return pod, errors.Join(err, podErr)
}

// aws runs the AWS CLI in the pod. It has neither keys nor a region.
func (d *demo) aws(pod *netns.Pod, name string) error {
	command := exec.CommandContext(d.ctx, "/usr/bin/aws", "sts", "get-caller-identity", "--endpoint-url", "http://"+stsAddress)
	command.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent"}
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	say("%s$ aws %s", name, strings.Join(command.Args[1:], " "))
	if err := pod.Start(command); err != nil {
		return err
	}
	return command.Wait()
}

// ask asks once for the name of the pod's role.
func ask(pod *netns.Pod, name string) error {
	const url = "http://" + metadata + "/latest/meta-data/iam/security-credentials/"
	say("%s: GET %s", name, url)
	response, err := pod.HTTPClient().Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	say("%s: %s\n%s", name, response.Status, body)
	return err
}
