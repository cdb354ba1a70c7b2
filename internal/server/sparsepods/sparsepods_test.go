package sparsepods

import (
	"bytes"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"
)

const wanted = "example.org/wanted"

var (
	media, _ = runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	full     = scheme.Codecs.WithoutConversion().DecoderToVersion(media.Serializer, corev1.SchemeGroupVersion)
	sparse   = codecs{scheme.Codecs.WithoutConversion(), []string{wanted, metav1.InitialEventsAnnotationKey}}.DecoderToVersion(media.Serializer, corev1.SchemeGroupVersion)
)

// encoded is an object as the API server sends it.
func encoded(t testing.TB, object runtime.Object) []byte {
	t.Helper()
	var data bytes.Buffer
	if err := scheme.Codecs.EncoderForVersion(media.Serializer, corev1.SchemeGroupVersion).Encode(object, &data); err != nil {
		t.Fatal(err)
	}
	return data.Bytes()
}

// reduced is what client-go reads, with the fields that are meant to be there alone.
func reduced(p *corev1.Pod) *corev1.Pod {
	containers := func(all []corev1.ContainerStatus) (kept []corev1.ContainerStatus) {
		for _, c := range all {
			var k corev1.ContainerStatus
			if c.State.Terminated != nil {
				k.State.Terminated = &corev1.ContainerStateTerminated{}
			}
			kept = append(kept, k)
		}
		return kept
	}
	kept := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
			CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp,
		},
		Spec: corev1.PodSpec{ServiceAccountName: p.Spec.ServiceAccountName, NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork},
		Status: corev1.PodStatus{
			Phase: p.Status.Phase, HostIP: p.Status.HostIP, HostIPs: p.Status.HostIPs, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs,
			ContainerStatuses: containers(p.Status.ContainerStatuses), InitContainerStatuses: containers(p.Status.InitContainerStatuses),
		},
	}
	for key, value := range p.Annotations {
		if key == wanted || key == metav1.InitialEventsAnnotationKey {
			metav1.SetMetaDataAnnotation(&kept.ObjectMeta, key, value)
		}
	}
	return kept
}

func randomPods(seed int64, count int) *corev1.PodList {
	fill := randfill.NewWithSeed(seed).NilChance(0.3).NumElements(0, 3).MaxDepth(12).Funcs(
		// Whole seconds are all that the API has.
		func(t *metav1.Time, c randfill.Continue) { *t = metav1.Unix(c.Int63n(4e9), 0) },
		func(*metav1.FieldsV1, randfill.Continue) {},
	)
	list := &corev1.PodList{}
	for i := range count {
		var p corev1.Pod
		fill.Fill(&p)
		p.TypeMeta = metav1.TypeMeta{}
		if i%2 == 0 {
			metav1.SetMetaDataAnnotation(&p.ObjectMeta, wanted, "value")
			metav1.SetMetaDataAnnotation(&p.ObjectMeta, metav1.InitialEventsAnnotationKey, "true")
		}
		list.Items = append(list.Items, p)
	}
	fill.Fill(&list.ListMeta)
	list.ShardInfo = nil
	return list
}

func decode[T runtime.Object](t *testing.T, d runtime.Decoder, data []byte, into runtime.Object) T {
	t.Helper()
	object, gvk, err := d.Decode(data, nil, into)
	decoded, ok := object.(T)
	if err != nil || !ok || gvk.GroupVersion() != corev1.SchemeGroupVersion {
		t.Fatalf("%T, %v, %v", object, gvk, err)
	}
	return decoded
}

// Whatever a pod is, the fields that are wanted are those that client-go reads, and no others
// are there.
func TestReadsWhatClientGoReads(t *testing.T) {
	list := randomPods(1, 300)
	terminated := 0
	for i := range list.Items {
		data := encoded(t, &list.Items[i])
		want := decode[*corev1.Pod](t, full, data, nil)
		for _, into := range []runtime.Object{nil, &corev1.Pod{}, list.Items[0].DeepCopy()} {
			if have := decode[*corev1.Pod](t, sparse, data, into); !reflect.DeepEqual(have, reduced(want)) {
				t.Fatalf("pod %d is\n%+v\nwant\n%+v", i, have, reduced(want))
			}
		}
		if slices.ContainsFunc(want.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.State.Terminated != nil }) {
			terminated++
		}
	}
	if terminated < 50 {
		t.Errorf("%d pods have a container that terminated", terminated)
	}
	data := encoded(t, list)
	want := decode[*corev1.PodList](t, full, data, nil)
	have := decode[*corev1.PodList](t, sparse, data, &corev1.PodList{})
	if have.ResourceVersion != want.ResourceVersion || have.Continue != want.Continue || !reflect.DeepEqual(have.RemainingItemCount, want.RemainingItemCount) {
		t.Errorf("the list is %+v, want %+v", have.ListMeta, want.ListMeta)
	}
	if len(have.Items) != len(want.Items) {
		t.Fatalf("%d pods, want %d", len(have.Items), len(want.Items))
	}
	for i := range want.Items {
		if !reflect.DeepEqual(&have.Items[i], reduced(&want.Items[i])) {
			t.Fatalf("pod %d of the list is\n%+v\nwant\n%+v", i, have.Items[i], reduced(&want.Items[i]))
		}
	}
}

// What is no pod, or no protobuf, is client-go's to read: a watch's errors, and a server that
// answers in JSON.
func TestOtherAnswersAreClientGos(t *testing.T) {
	gone := &metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonExpired, Message: "too old resource version", Code: 410}
	gone.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Status"))
	for name, data := range map[string][]byte{
		"Status":  encoded(t, gone),
		"Service": encoded(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "app"}}),
		"nothing": nil,
		"text":    []byte("too many requests"),
	} {
		want, _, wantErr := full.Decode(data, nil, nil)
		have, _, err := sparse.Decode(data, nil, nil)
		if !reflect.DeepEqual(have, want) || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: %+v, %v; want %+v, %v", name, have, err, want, wantErr)
		}
	}
	json, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
	d := codecs{scheme.Codecs.WithoutConversion(), nil}.DecoderToVersion(json.Serializer, corev1.SchemeGroupVersion)
	have, _, err := d.Decode([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"app"},"spec":{"nodeName":"node-1"}}`), nil, nil)
	if p, ok := have.(*corev1.Pod); err != nil || !ok || p.Name != "app" || p.Spec.NodeName != "node-1" {
		t.Errorf("JSON: %+v, %v", have, err)
	}
}

// A pod that was cut off is an error and no pod with less.
func TestCutOffIsAnError(t *testing.T) {
	data := encoded(t, &randomPods(2, 1).Items[0])
	kind, message := unwrap(data)
	if kind != "Pod" {
		t.Fatalf("kind %q", kind)
	}
	var ends int
	for n := range message {
		if err := (decoder{}).pod(message[:n], &corev1.Pod{}); err == nil {
			ends++ // between two of its three fields
		}
	}
	if ends > 3 {
		t.Errorf("%d of %d beginnings are pods", ends, len(message))
	}
}

// usual is a pod as kubelets leave it.
func usual() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app-5d4f7c9b8d-abcde", Namespace: "team", UID: "9c6f8d4e", ResourceVersion: "12", Labels: map[string]string{"app": "app"}, CreationTimestamp: metav1.Unix(1.8e9, 0)},
		Spec: corev1.PodSpec{
			ServiceAccountName: "app", NodeName: "node-1",
			Containers: []corev1.Container{{Name: "app", Image: "app", Env: make([]corev1.EnvVar, 20)}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}},
			Conditions: make([]corev1.PodCondition, 5), ContainerStatuses: make([]corev1.ContainerStatus, 1),
		},
	}
}

// Memory is what this is for.
func TestAllocatesLittle(t *testing.T) {
	data := encoded(t, usual())
	const most = 16 // the pod, its texts, and its three lists
	if allocations := testing.AllocsPerRun(100, func() { decode[*corev1.Pod](t, sparse, data, nil) }); allocations > most {
		t.Errorf("%v allocations, want %d at most", allocations, most)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, usual()))
	f.Add(encoded(f, &corev1.PodList{Items: []corev1.Pod{*usual()}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		want, _, wantErr := full.Decode(data, nil, nil)
		have, _, err := sparse.Decode(data, nil, nil)
		pod, ok := want.(*corev1.Pod)
		if wantErr != nil || !ok {
			return // what is wrong in a field that is passed over is not seen
		}
		read, ok := have.(*corev1.Pod)
		if err != nil || !ok {
			t.Fatalf("%T, %v, and client-go reads %+v", have, err, pod)
		}
		if have, want := read, reduced(pod); have.UID != want.UID || have.Spec.ServiceAccountName != want.Spec.ServiceAccountName ||
			!slices.Equal(have.Status.PodIPs, want.Status.PodIPs) {
			t.Errorf("%+v, want %+v", have, want)
		}
	})
}
