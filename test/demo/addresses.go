package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// addresses has when the API server first told each pod's address, by namespace and name. A
// kubelet that gets no processor tells it seconds after the pod's program has begun, and an SDK
// that asks by its address has given up by then: the one for Go after three times a second.
type addresses struct {
	mutex sync.Mutex
	told  map[string]time.Time
}

// watchAddresses takes them down until ctx ends.
func watchAddresses(ctx context.Context, kubeconfig string) (*addresses, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	a := &addresses{told: map[string]time.Time{}}
	changed := func(object any) {
		if pod := object.(*corev1.Pod); pod.Status.PodIP != "" {
			a.tell(pod.Namespace+"/"+pod.Name, time.Now())
		}
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	if _, err := factory.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, UpdateFunc: func(_, now any) { changed(now) },
	}); err != nil {
		return nil, err
	}
	factory.StartWithContext(ctx)
	return a, nil
}

func (a *addresses) tell(pod string, at time.Time) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if _, told := a.told[pod]; !told {
		a.told[pod] = at
	}
}

// judge is verdict for attempts of programs, whose failures have their pod as kind and were over
// when they were told of: nobody could know whose a request was before its pod's address was told.
func (a *addresses) judge(failures []failure, attempts string, delays []delay) error {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	var early, others []failure
	for _, f := range failures {
		if told, ok := a.told[f.Kind]; ok && f.At.Before(told.Add(tooLate)) {
			early = append(early, f)
		} else {
			others = append(others, f)
		}
	}
	if err := verdict(others, attempts, delays); err != nil || len(early) == 0 {
		return err
	}
	return fmt.Errorf("%d of %s failed before the kubelet had told the pod's address for %s: that says nothing about iam4kube:%s",
		len(early), attempts, tooLate, grouped(early))
}
