// The networkpolicy program enforces the NetworkPolicies of one node, as a network plug-in
// that can does it: with the engine of kube-network-policies, which decides on the first packet
// of each connection. It ends with its standard input, and takes its rules with it.
//
// That engine's own nftables rules need nft_queue, which not every kernel has; here the packets
// come to it by NFQUEUE of iptables, at the same place: after every DNAT, before SNAT. And it
// learns from containerd 1.7, by NRI, which pod an address is of; with an older one it knows that
// only when the API server does, and until then would let everything pass. Here such packets are
// dropped, as by plug-ins that know the pod when they make its link.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

// queue is the number of the NFQUEUE.
const queue = 100

func main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig file")
	node := flag.String("node", "", "name of the node")
	pods := flag.String("pods", "", "the addresses of all pods, as a prefix")
	flag.Parse()
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until it is closed
		stop()
	}()
	if err := run(ctx, *kubeconfig, *node, *pods); err != nil {
		fmt.Fprintln(os.Stderr, "networkpolicy:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, node, pods string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(client, factory.Networking().V1().NetworkPolicies(),
		factory.Core().V1().Namespaces(), factory.Core().V1().Pods(), nil, nil, nil, nil,
		networkpolicy.Config{NodeName: node, QueueID: queue})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- controller.Run(ctx) }()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if err := listening(ctx, ended); err != nil {
		return err
	}
	err = rules(pods)
	if err == nil {
		err = follow(factory.Core().V1().Pods().Informer())
	}
	if err == nil {
		fmt.Println("ready")
		err = <-ended
	}
	return errors.Join(err, remove())
}

// listening waits until somebody takes what is put into the queue.
func listening(ctx context.Context, ended <-chan error) error {
	for tick := time.Tick(50 * time.Millisecond); ; {
		queues, err := os.ReadFile("/proc/net/netfilter/nfnetlink_queue")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(queues)) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == fmt.Sprint(queue) {
				return nil
			}
		}
		select {
		case <-tick:
		case err := <-ended:
			return fmt.Errorf("the controller ended early: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const (
	all   = "NETWORKPOLICY"
	known = "NETWORKPOLICY-KNOWN"
)

func rules(pods string) error {
	return errors.Join(
		iptables("--new-chain", known),
		iptables("--append", known, "--jump", "DROP"),
		iptables("--new-chain", all),
		// The node's own programs, kubelet's probes among them, are let be.
		iptables("--append", all, "--match", "owner", "--uid-owner", "0", "--jump", "RETURN"),
		iptables("--append", all, "--match", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "--jump", "RETURN"),
		iptables("--append", all, "--source", pods, "--jump", known),
		iptables("--append", all, "--jump", "NFQUEUE", "--queue-num", fmt.Sprint(queue)),
		iptables("--append", "POSTROUTING", "--jump", all),
	)
}

func remove() error {
	return errors.Join(
		iptables("--delete", "POSTROUTING", "--jump", all),
		iptables("--flush", all), iptables("--delete-chain", all),
		iptables("--flush", known), iptables("--delete-chain", known),
	)
}

// follow lets the packets of pods go on to the queue whose addresses the engine knows.
func follow(pods cache.SharedIndexInformer) error {
	let := func(action string, addresses ...corev1.PodIP) {
		for _, address := range addresses {
			if err := iptables(action, known, "--source", address.IP, "--jump", "RETURN"); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
	_, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) { let("--insert", addresses(object)...) },
		UpdateFunc: func(before, object any) {
			if len(addresses(before)) == 0 {
				let("--insert", addresses(object)...)
			}
		},
		DeleteFunc: func(object any) {
			if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
				object = last.Obj
			}
			let("--delete", addresses(object)...)
		},
	})
	return err
}

func addresses(object any) []corev1.PodIP {
	pod := object.(*corev1.Pod)
	if pod.Spec.HostNetwork {
		return nil
	}
	return pod.Status.PodIPs
}

func iptables(arguments ...string) error {
	output, err := exec.Command("iptables", append([]string{"--wait", "--table", "mangle"}, arguments...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(arguments, " "), err, output)
	}
	return nil
}
