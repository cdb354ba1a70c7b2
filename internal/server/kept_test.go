package server

import (
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	k8smetadata "k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/internal/server/podevents"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

const (
	// senders is how many objects a test writes, senderBytes how long it makes each of
	// their strings: annotations can be 256 KiB long together.
	senders, senderBytes = 50, 250 << 10
	// mostKept is for the longest role and external ID that are valid, 2 KB, or a text
	// that says what is wrong, and for the names.
	mostKept = 6 << 10
)

// Whoever may write an object chooses the bytes of its strings, and of none of them more is
// kept than is valid: everything of everybody has to fit into memory.
func TestNothingKeptGrowsWithItsSender(t *testing.T) {
	config := &rest.Config{}
	metadata := k8smetadata.NewForConfigOrDie(config)
	client, err := kube.NewCore(config, &http.Client{})
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	hub := waiting.NewHub(1, 1)
	cache := credentials.New(nil, hub, registry, zap.NewNop())
	index := identity.New(identity.Config{Hub: hub, Roles: cache, Observer: podevents.New(client.Events, registry, zap.NewNop()), Sessions: role.Sessions{Duration: time.Hour}, Registry: registry})
	pods, accounts, nodes := index.Pods(client.Pods()), index.ServiceAccounts(metadata), index.Nodes(client.Nodes())

	long := strings.Repeat("a", senderBytes)
	const arn = "arn:aws:iam::123456789012:role/app"
	for what, annotations := range map[string]map[string]string{
		"ARN":             {role.AnnotationARN: long},
		"path of an ARN":  {role.AnnotationARN: "arn:aws:iam::123456789012:role/" + long + "/app"},
		"ARN with a tail": {role.AnnotationARN: arn + "\n" + long},
		"bytes to quote":  {role.AnnotationARN: strings.Repeat("\xff", senderBytes)},
		"external ID":     {role.AnnotationARN: arn, role.AnnotationExternalID: long},
		"no role":         {role.AnnotationExternalID: long, role.AnnotationDuration: long},
		"duration":        {role.AnnotationARN: arn, role.AnnotationDuration: long},
		"zeros in front":  {role.AnnotationARN: arn, role.AnnotationDuration: strings.Repeat("0", senderBytes) + "900"},
		"longest that are valid": {
			role.AnnotationARN:        "arn:aws-us-gov:iam::123456789012:role/" + long[:510] + "/" + long[:64],
			role.AnnotationExternalID: long[:1224], role.AnnotationDuration: "43200",
		},
		"a lookalike":      {long[:100] + "/roleARN": long},
		"other annotation": {role.AnnotationARN: arn, corev1.MirrorPodAnnotationKey: long},
	} {
		t.Run(what, func(t *testing.T) { keepsLittle(t, accounts, annotations) })
	}
	t.Run("pod", func(t *testing.T) { keepsLittle(t, pods, nil) })
	t.Run("static pod", func(t *testing.T) { keepsLittle(t, pods, map[string]string{corev1.MirrorPodAnnotationKey: long}) })
	t.Run("token key", func(t *testing.T) {
		tokens := imdstoken.NewKeys(client.Secrets("ns"), registry, zap.NewNop())
		keepsLittle(t, tokens.Resource(), nil)
		runtime.KeepAlive(tokens)
	})
	t.Run("node", func(t *testing.T) { keepsLittle(t, nodes, nil) })
	runtime.KeepAlive(index)
}

// keepsLittle measures what the heap still has of objects that are long everywhere.
func keepsLittle[O k8sruntime.Object, T any](t *testing.T, r kube.Resource[O, T], annotations map[string]string) {
	t.Helper()
	before := heap()
	kept := make([]T, 0, senders)
	for i := range senders {
		object := reflect.New(reflect.TypeFor[O]().Elem())
		long := fmt.Sprint(i, strings.Repeat("x", senderBytes))
		lengthen(object.Elem(), long, i)
		own := map[string]string{long: long}
		for name, value := range maps.All(annotations) {
			own[name] = strings.Clone(value)
		}
		if secret, ok := reflect.TypeAssert[*corev1.Secret](object); ok {
			secret.Data = map[string][]byte{long: []byte(long), imdstoken.CurrentKey: []byte(long), imdstoken.PreviousKey: []byte(long)}
		}
		object.Elem().FieldByName("Annotations").Set(reflect.ValueOf(own))
		o, ok := reflect.TypeAssert[O](object)
		if !ok {
			t.Fatalf("%v", object.Type())
		}
		kept = append(kept, r.Keep(o))
	}
	r.Sink.Replace(kept)
	clear(kept)
	if each := (heap() - before) / senders; each > mostKept {
		t.Errorf("%d bytes are kept of each, want at most %d", each, mostKept)
	}
	r.Sink.Replace(nil)
}

// heap is the bytes that are in use.
func heap() int {
	runtime.GC()
	runtime.GC() // what had a finalizer or is canonical lives until the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// lengthen makes every string below v as long, but for those whose length the API server
// limits: they are as long as it lets them be.
func lengthen(v reflect.Value, long string, i int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(long)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		lengthen(v.Elem(), long, i)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for n := range v.Len() {
			lengthen(v.Index(n), long, i)
		}
	case reflect.Struct:
		for n := range v.NumField() {
			if v.Type().Field(n).IsExported() {
				lengthen(v.Field(n), long, i)
			}
		}
	}
	valid := func(most int) string { return fmt.Sprintf("%0*d", most, i) }
	switch o := v.Addr().Interface().(type) {
	case *metav1.ObjectMeta:
		o.Name, o.Namespace, o.UID = valid(253), valid(63), "01234567-89ab-cdef-0123-456789abcdef"
		o.Labels = map[string]string{corev1.LabelTopologyZone: valid(63), corev1.LabelTopologyRegion: valid(63)}
	case *corev1.NodeSpec:
		o.ProviderID = "" // or the labels do not count
	case *corev1.PodSpec:
		o.ServiceAccountName, o.NodeName = valid(253), valid(253)
	}
}
