//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// perPath is how many requests go a second through each path, from two nodes: 200 where a source
// address tells who calls, 50 with tokens, so that two cores have room for what a phase does.
// Four starts of an AWS SDK for Go and, where there is no token, two of boto3 come on top, with
// a few requests each.
var perPath = map[path]int{nodeWide: 200, inPod: 200, withToken: 50, onHost: 50}

// perPathOfUpgrade has no less by token: an upgrade is a rollout, where phases of TestZeroDowntime are more.
var perPathOfUpgrade = map[path]int{nodeWide: 200, inPod: 200, withToken: 200, onHost: 200}

// second, count and failure are what `client load` prints.
type second struct {
	Start    time.Time
	Late     int64
	Counts   map[string]count
	Failures []failure
}

type count struct {
	Done    int
	Slowest int64
}

type failure struct {
	At           time.Time
	Milliseconds int64
	Kind, Error  string
	pod          loadPod
}

// boto3 is what a user's program does that starts: a default session, whose requests get one
// second and one attempt. It prints what `client load` does.
const boto3 = `
import boto3, datetime, json, logging, sys, time
reasons = []
class Reasons(logging.Handler):
    def emit(self, record):
        if record.name == "botocore.utils":
            reasons.append(record.getMessage() + (": %r" % (record.exc_info[1],) if record.exc_info else ""))
logging.getLogger("botocore.utils").setLevel(logging.DEBUG)
logging.getLogger("botocore.utils").addHandler(Reasons())
def text(moment):
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).isoformat()
start = time.time()
while True:
    second = {"Start": text(start), "Counts": {"boto3": {"Done": 0, "Slowest": 0}}, "Failures": []}
    for i in range(2):
        time.sleep(max(0, start + i / 2 - time.time()))
        begun = time.time()
        reasons.clear()
        credentials = boto3.session.Session().get_credentials()
        took = int((time.time() - begun) * 1000)
        second["Counts"]["boto3"]["Done"] += 1
        second["Counts"]["boto3"]["Slowest"] = max(second["Counts"]["boto3"]["Slowest"], took)
        if not credentials or not credentials.access_key:
            second["Failures"].append({"At": text(begun), "Milliseconds": took, "Kind": "boto3", "Error": "; ".join(reasons)})
    print(json.dumps(second), flush=True)
    start += 1
`

type loadPod struct {
	way             path
	namespace, name string
	boto3           bool
}

// loaded are the paths that clients ask through.
var loaded = []path{nodeWide, inPod, withToken, onHost}

// load is unmodified clients that ask through these paths, from both workers, all the time.
type load struct {
	pods    []loadPod
	perPath map[path]int
	// since is when the phase before ended.
	since     time.Time
	endpoints *history
}

func startLoad(t *testing.T, perPath map[path]int) *load {
	t.Helper()
	l := &load{perPath: perPath, endpoints: watchEndpoints(t)}
	for i, way := range loaded {
		ns := namespace(t, way)
		for j, name := range []string{"role-21", "role-22"} {
			role(t, ns, name)
			pod := way.of(clientPod(ns, name, "load"))
			pod.Name = "load-" + name
			pod.Spec.Containers[0].Args = []string{"load", strconv.Itoa(perPath[way] / 2)}
			create(t, onWorker(withProcessor(pod), fmt.Sprintf("worker-%d", j+1)))
			l.pods = append(l.pods, loadPod{way, ns, pod.Name, false})
		}
		if way == withToken || way == onHost {
			continue // which Debian's boto3 does not know
		}
		pod := onWorker(withProcessor(botoPod(ns, "role-21")), fmt.Sprintf("worker-%d", i+1))
		create(t, pod)
		l.pods = append(l.pods, loadPod{way, ns, pod.Name, true})
	}
	for _, p := range l.pods {
		waitPod(t, p.namespace, p.name, running)
	}
	l.steady(t)
	l.since = time.Now()
	return l
}

// steady waits until all clients have begun what they did in time for a few seconds: what starts,
// and what comes of a phase before, takes processors from them, and an SDK gives up after a second.
func (l *load) steady(t *testing.T) {
	t.Helper()
	few := int64(3)
	for _, p := range l.pods {
		eventually(t, p.namespace+"/"+p.name+" asks in time", func() bool {
			all := p.told(t, corev1.PodLogOptions{TailLines: &few})
			return len(all) == int(few) && !slices.ContainsFunc(all, func(s second) bool { return s.Late > 250 || len(s.Failures) > 0 })
		})
	}
}

// withProcessor keeps what measures from being the first that waits on a busy machine.
func withProcessor(pod *corev1.Pod) *corev1.Pod {
	pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("200m")}
	return pod
}

// botoPod has the programs of the machine.
func botoPod(namespace, serviceAccount string) *corev1.Pod {
	pod := clientPod(namespace, serviceAccount, "")
	pod.Name = "boto3-" + serviceAccount
	container := &pod.Spec.Containers[0]
	container.Command, container.Args = []string{"/usr/bin/python3", "-c", boto3}, nil
	container.Env = []corev1.EnvVar{{Name: "PYTHONUNBUFFERED", Value: "1"}}
	container.VolumeMounts = []corev1.VolumeMount{{Name: "usr", MountPath: "/usr", ReadOnly: true}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "usr", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/usr"}}}}
	return pod
}

// told is what a pod has printed.
func (p loadPod) told(t *testing.T, options corev1.PodLogOptions) (all []second) {
	t.Helper()
	options.Container = "client"
	decoder := json.NewDecoder(bytes.NewReader(logsOf(t, p.namespace, p.name, options)))
	for {
		var s second
		if decoder.Decode(&s) != nil {
			return all // the end, or a line that is being written
		}
		all = append(all, s)
	}
}

// seconds of a pod that ended after start and began before end, when all that was begun in them
// has ended.
func (l *load) seconds(t *testing.T, p loadPod, start, end time.Time) (all []second) {
	t.Helper()
	since := metav1.NewTime(start.Add(-time.Second)) // boto3's may have ended before their second has
	eventually(t, p.namespace+"/"+p.name+" has told of all seconds", func() bool {
		all = p.told(t, corev1.PodLogOptions{SinceTime: &since})
		all = slices.DeleteFunc(all, func(s second) bool { return !s.Start.Before(end) || !s.Start.Add(time.Second).After(start) })
		if len(all) == 0 {
			return false
		}
		slices.SortFunc(all, func(a, b second) int { return a.Start.Compare(b.Start) })
		// There is one for every second since the first.
		return end.Sub(all[0].Start) <= time.Duration(len(all))*time.Second && !all[0].Start.After(start)
	})
	return all
}

// report is what came of what was begun in a phase.
type report struct {
	start, end time.Time
	seconds    map[path]int
	late       int64
	counts     map[path]map[string]count
	failures   []failure
}

// phase does something while the clients ask, and tells how they fared since the phase before.
func (l *load) phase(t *testing.T, do func()) *report {
	t.Helper()
	r := &report{start: l.since, seconds: map[path]int{}, counts: map[path]map[string]count{}}
	for _, way := range loaded {
		r.counts[way] = map[string]count{}
	}
	do()
	r.end = time.Now()
	l.since = r.end
	for _, p := range l.pods {
		for _, s := range l.seconds(t, p, r.start, r.end) {
			for _, f := range s.Failures {
				if !f.At.Before(r.start) && f.At.Before(r.end) {
					f.pod = p
					r.failures = append(r.failures, f)
				}
			}
			if s.Start.Before(r.start) {
				continue
			}
			if !p.boto3 {
				r.seconds[p.way]++
				r.late = max(r.late, s.Late)
			}
			for kind, c := range s.Counts {
				sum := r.counts[p.way][kind]
				r.counts[p.way][kind] = count{sum.Done + c.Done, max(sum.Slowest, c.Slowest)}
			}
		}
	}
	slices.SortFunc(r.failures, func(a, b failure) int { return a.At.Compare(b.At) })
	for _, way := range loaded {
		requests, podSeconds := r.counts[way]["new"].Done+r.counts[way]["kept"].Done, r.seconds[way]
		if requests != podSeconds*l.perPath[way]/2 {
			t.Errorf("%s: %d requests in %d s of two pods", way, requests, podSeconds)
		}
	}
	t.Log(r)
	if len(r.failures) > 0 {
		t.Logf("endpoints meanwhile:\n%s", l.endpoints.between(r.start, r.end))
	}
	return r
}

func (r *report) String() string {
	text := &strings.Builder{}
	fmt.Fprintf(text, "%d failed in %.1f s, with clients up to %d ms late", len(r.failures), r.end.Sub(r.start).Seconds(), r.late)
	for _, way := range loaded {
		fmt.Fprintf(text, "; %s:", way)
		for _, kind := range slices.Sorted(maps.Keys(r.counts[way])) {
			c := r.counts[way][kind]
			fmt.Fprintf(text, " %d %s (slowest %d ms)", c.Done, kind, c.Slowest)
		}
	}
	type group struct {
		way         path
		kind, error string
	}
	groups := map[group][]failure{}
	for _, f := range r.failures {
		g := group{f.pod.way, f.Kind, passing.ReplaceAllString(f.Error, "")}
		groups[g] = append(groups[g], f)
	}
	for g, of := range groups {
		slowest := slices.MaxFunc(of, func(a, b failure) int { return cmp.Compare(a.Milliseconds, b.Milliseconds) })
		fmt.Fprintf(text, "\n  %d %s, %s, begun %s to %s, after %d ms at most: %s",
			len(of), g.way, g.kind, clock(of[0].At), clock(of[len(of)-1].At), slowest.Milliseconds, g.error)
	}
	return text.String()
}

// passing is what differs between errors of one cause.
var passing = regexp.MustCompile(`^(Get|Put) "[^"]*": |(read|write|dial) tcp \S+ |\bhttp://\S+: `)

func clock(at time.Time) string { return at.Local().Format("15:04:05.000") }

// wantNone is for phases that nobody may notice.
func (r *report) wantNone(t *testing.T) {
	t.Helper()
	if len(r.failures) > 0 {
		t.Errorf("%d requests failed", len(r.failures))
	}
}
