// Package sparsepods reads of the API server's pods what the server needs, and passes over
// the rest. A pod takes 10 KB, and nearly all of what client-go makes of it is garbage at once:
// with 50,000 pods that took nearly half of the processor time of a start. It owns the numbers of
// the fields,
// https://github.com/kubernetes/api/blob/master/core/v1/generated.proto. Which fields mean what is
// package identity's.
package sparsepods

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/kube"
)

// New returns a client that gets pods with no more than these fields: name, namespace, UID,
// resource version, times of creation and deletion, and the named annotations; ServiceAccount,
// node, and whether it has the host's network; phase, addresses, and which containers have
// terminated. An answer that is no protobuf of a pod, or of a list of them, is read as by
// client-go.
func New(config *rest.Config, client *http.Client, annotations ...string) (kube.Pods, error) {
	all, err := kube.Codecs(corev1.AddToScheme)
	if err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.QPS = -1 // hundreds of pages, each of which waits for the one before
	config.NegotiatedSerializer = codecs{
		all,
		// By which the API server marks the end of what was there, in a bookmark.
		append(slices.Clone(annotations), metav1.InitialEventsAnnotationKey),
	}
	c, err := rest.RESTClientForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("make a client for the API server: %w", err)
	}
	return kube.Core{Interface: c}.Pods(), nil
}

type codecs struct {
	runtime.NegotiatedSerializer
	annotations []string
}

// DecoderToVersion implements runtime.NegotiatedSerializer.
func (c codecs) DecoderToVersion(d runtime.Decoder, version runtime.GroupVersioner) runtime.Decoder {
	return decoder{c.NegotiatedSerializer.DecoderToVersion(d, version), c.annotations}
}

type decoder struct {
	runtime.Decoder
	annotations []string
}

// Decode implements runtime.Decoder.
func (d decoder) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	kind, message := unwrap(data)
	gvk := corev1.SchemeGroupVersion.WithKind(kind)
	switch kind {
	case "Pod":
		pod, ok := into.(*corev1.Pod)
		if into == nil {
			pod, ok = &corev1.Pod{}, true
		}
		if ok {
			*pod = corev1.Pod{}
			return pod, &gvk, d.pod(message, pod)
		}
	case "PodList":
		list, ok := into.(*corev1.PodList)
		if into == nil {
			list, ok = &corev1.PodList{}, true
		}
		if ok {
			*list = corev1.PodList{}
			return list, &gvk, d.list(message, list)
		}
	}
	return d.Decoder.Decode(data, defaults, into)
}

// unwrap returns the kind of a core/v1 object and its message, or nothing if data is something
// else: runtime.Unknown behind four bytes,
// https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding
func unwrap(data []byte) (kind string, message []byte) {
	const magic = "k8s\x00"
	if len(data) < len(magic) || string(data[:len(magic)]) != magic {
		return "", nil
	}
	version, encoded := "", false
	err := fields(data[len(magic):], func(number protowire.Number, f field) error {
		switch number {
		case 1: // TypeMeta
			return fields(f.bytes, func(number protowire.Number, f field) error {
				switch number {
				case 1:
					version = string(f.bytes)
				case 2:
					kind = string(f.bytes)
				}
				return nil
			})
		case 2:
			message = f.bytes
		case 3: // a content encoding
			encoded = encoded || len(f.bytes) > 0
		}
		return nil
	})
	if err != nil || encoded || version != corev1.SchemeGroupVersion.Version {
		return "", nil
	}
	return kind, message
}

// field is the value of one: bytes of a string or of another message, or a number.
type field struct {
	bytes  []byte
	number uint64
}

// fields calls each with the fields of a message, in their order.
func fields(message []byte, each func(protowire.Number, field) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		var f field
		switch kind {
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			f.number, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if err := each(number, f); err != nil {
			return err
		}
	}
	return nil
}

func (d decoder) list(message []byte, list *corev1.PodList) error {
	return fields(message, func(number protowire.Number, f field) error {
		switch number {
		case 1:
			return fields(f.bytes, func(number protowire.Number, f field) error {
				switch number {
				case 2:
					list.ResourceVersion = string(f.bytes)
				case 3:
					list.Continue = string(f.bytes)
				case 4:
					remaining := int64(f.number)
					list.RemainingItemCount = &remaining
				}
				return nil
			})
		case 2:
			list.Items = append(list.Items, corev1.Pod{})
			return d.pod(f.bytes, &list.Items[len(list.Items)-1])
		}
		return nil
	})
}

func (d decoder) pod(message []byte, p *corev1.Pod) error {
	return fields(message, func(number protowire.Number, f field) error {
		switch number {
		case 1:
			return d.metadata(f.bytes, &p.ObjectMeta)
		case 2:
			return spec(f.bytes, &p.Spec)
		case 3:
			return status(f.bytes, &p.Status)
		}
		return nil
	})
}

func (d decoder) metadata(message []byte, m *metav1.ObjectMeta) error {
	return fields(message, func(number protowire.Number, f field) (err error) {
		switch number {
		case 1:
			m.Name = string(f.bytes)
		case 3:
			m.Namespace = string(f.bytes)
		case 5:
			m.UID = types.UID(f.bytes)
		case 6:
			m.ResourceVersion = string(f.bytes)
		case 8:
			m.CreationTimestamp, err = moment(f.bytes)
		case 9:
			var deletion metav1.Time
			deletion, err = moment(f.bytes)
			m.DeletionTimestamp = &deletion
		case 12:
			err = d.annotation(f.bytes, m)
		}
		return err
	})
}

func moment(message []byte) (metav1.Time, error) {
	var seconds, nanos int64
	err := fields(message, func(number protowire.Number, f field) error {
		switch number {
		case 1:
			seconds = int64(f.number)
		case 2:
			nanos = int64(int32(f.number))
		}
		return nil
	})
	return metav1.Time{Time: time.Unix(seconds, nanos).Local()}, err
}

func (d decoder) annotation(message []byte, m *metav1.ObjectMeta) error {
	var key, value []byte
	err := fields(message, func(number protowire.Number, f field) error {
		switch number {
		case 1:
			key = f.bytes
		case 2:
			value = f.bytes
		}
		return nil
	})
	for _, wanted := range d.annotations {
		if string(key) == wanted {
			metav1.SetMetaDataAnnotation(m, wanted, string(value))
		}
	}
	return err
}

func spec(message []byte, s *corev1.PodSpec) error {
	return fields(message, func(number protowire.Number, f field) error {
		switch number {
		case 8:
			s.ServiceAccountName = string(f.bytes)
		case 10:
			s.NodeName = string(f.bytes)
		case 11:
			s.HostNetwork = f.number != 0
		}
		return nil
	})
}

func status(message []byte, s *corev1.PodStatus) error {
	return fields(message, func(number protowire.Number, f field) error {
		switch number {
		case 1:
			s.Phase = corev1.PodPhase(f.bytes)
		case 5:
			s.HostIP = string(f.bytes)
		case 6:
			s.PodIP = string(f.bytes)
		case 8:
			return container(f.bytes, &s.ContainerStatuses)
		case 10:
			return container(f.bytes, &s.InitContainerStatuses)
		case 12:
			ip, err := first(f.bytes)
			s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
			return err
		case 16:
			ip, err := first(f.bytes)
			s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
			return err
		}
		return nil
	})
}

// first is the text that a message has as its first field.
func first(message []byte) (text string, err error) {
	err = fields(message, func(number protowire.Number, f field) error {
		if number == 1 {
			text = string(f.bytes)
		}
		return nil
	})
	return text, err
}

// container adds the status of one, which says at most that it has terminated.
func container(message []byte, all *[]corev1.ContainerStatus) error {
	var c corev1.ContainerStatus
	err := fields(message, func(number protowire.Number, f field) error {
		if number != 2 {
			return nil
		}
		return fields(f.bytes, func(number protowire.Number, _ field) error {
			if number == 3 {
				c.State.Terminated = &corev1.ContainerStateTerminated{}
			}
			return nil
		})
	})
	*all = append(*all, c)
	return err
}
