package fakests_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/iam4kube/iam4kube/test/fakests"
)

func TestAttemptIsRecorded(t *testing.T) {
	var answered []fakests.Attempt
	f := fakests.New(fakests.Config{OnAnswer: func(a fakests.Attempt) { answered = append(answered, a) }})
	f.AddKey(serverKey)
	f.AddRole(fakests.Role{ARN: roleARN, Trust: fakests.Trust{Principals: []string{"*"}}})
	synctest.Test(t, func(t *testing.T) {
		server := f.StartPipe()
		defer server.Close()
		f.SetFault("", fakests.Fault{Delay: time.Second})
		arrival := time.Now()
		out, err := assume(t, serverClient(server), func(in *sts.AssumeRoleInput) {
			in.ExternalId, in.DurationSeconds = aws.String("e1"), aws.Int32(1800)
		})
		if err != nil {
			t.Fatal(err)
		}
		a := f.Attempts()[0]
		if a.ExternalID == nil || *a.ExternalID != "e1" {
			t.Errorf("external ID %v", a.ExternalID)
		}
		if !a.Time.Equal(arrival) {
			t.Errorf("arrived %v, want %v", a.Time, arrival)
		}
		a.ExternalID, a.Time = nil, time.Time{}
		if want := (fakests.Attempt{
			Action: "AssumeRole", AccessKeyID: serverKey.AccessKeyID, RoleARN: roleARN,
			SessionName: "default@reader", Duration: "1800", Outcome: "Success", Status: 200,
			IssuedAccessKeyID: *out.Credentials.AccessKeyId,
		}); a != want {
			t.Errorf("got  %+v\nwant %+v", a, want)
		}
	})
	if len(answered) != 1 || answered[0].Outcome != "Success" {
		t.Errorf("OnAnswer saw %+v", answered)
	}
}

func TestWaitAttempts(t *testing.T) {
	f := newFake()
	server := start(t, f)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if attempts, err := f.WaitAttempts(t.Context(), 5); err != nil || len(attempts) < 5 {
				t.Errorf("%v: %d attempts", err, len(attempts))
			}
		})
	}
	for range 5 {
		wg.Go(func() { _, _ = assume(t, serverClient(server)) })
	}
	wg.Wait()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if attempts, err := f.WaitAttempts(ctx, 6); !errors.Is(err, cause) || len(attempts) != 5 {
		t.Errorf("%v: %d attempts", err, len(attempts))
	}
	if !slices.IsSortedFunc(f.Attempts(), func(a, b fakests.Attempt) int { return a.Time.Compare(b.Time) }) {
		t.Error("not in the order of arrival")
	}
}

func attemptsAt(seconds ...float64) []fakests.Attempt {
	attempts := make([]fakests.Attempt, len(seconds))
	for i, s := range seconds {
		attempts[i].Time = time.Unix(1e9, 0).Add(time.Duration(s * float64(time.Second)))
	}
	return attempts
}

func TestRateExceeded(t *testing.T) {
	for name, c := range map[string]struct {
		at    []float64
		rate  float64
		burst int
		want  float64
	}{
		"none":                      {nil, 10, 20, math.Inf(-1)},
		"one":                       {[]float64{0}, 10, 1, 0},
		"a burst":                   {[]float64{0, 0, 0}, 10, 3, 0},
		"one over the burst":        {[]float64{0, 0, 0, 0}, 10, 3, 1},
		"at the rate":               {[]float64{0, 0, .5, 1, 1.5}, 2, 2, 0},
		"burst after a pause":       {[]float64{0, 10, 10, 10}, 2, 2, 1},
		"a little early":            {[]float64{0, 0, .25}, 2, 2, .5},
		"out of order":              {[]float64{1, 0, 0, .5, 1.5}, 2, 2, 0},
		"hidden in a slow sequence": {[]float64{0, 5, 10, 15, 15.1, 15.2, 15.3, 20, 25}, 1, 3, .7},
	} {
		if got := fakests.RateExceeded(attemptsAt(c.at...), c.rate, c.burst); got != c.want && math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// TestRateExceededSeesEveryWindow compares with the definition, window by window.
func TestRateExceededSeesEveryWindow(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		at := make([]float64, 1+random.IntN(30))
		for i := range at {
			at[i] = random.Float64() * 5
		}
		slices.Sort(at)
		rate, burst := random.Float64()*10, 1+random.IntN(5)
		want := math.Inf(-1)
		for i := range at {
			for j := i; j < len(at); j++ {
				want = max(want, float64(j-i+1)-float64(burst)-rate*(at[j]-at[i]))
			}
		}
		if got := fakests.RateExceeded(attemptsAt(at...), rate, burst); math.Abs(got-want) > 1e-6 {
			t.Fatalf("got %v, want %v for %v at rate %v burst %d", got, want, at, rate, burst)
		}
	}
}
