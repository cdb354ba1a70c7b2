package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/logging"
)

// Outcomes of a check, a metric's label.
const (
	published   = "published"
	unpublished = "unpublished"
	unreachable = "unreachable"
)

const (
	// checkEvery is between two checks of which the last was good, recheckEvery where it was not.
	checkEvery, recheckEvery = 10 * time.Minute, 30 * time.Second
)

// Checker looks whether the issuer's URL serves the key that signs, as AWS has to find it there.
type Checker struct {
	issuer   *Issuer
	client   *http.Client
	tell     func(problem string)
	outcomes *prometheus.GaugeVec
	last     string
}

// NewChecker returns a Checker that tells of each check by which the key is not published.
func NewChecker(i *Issuer, registry prometheus.Registerer, tellProblem func(problem string)) *Checker {
	c := &Checker{issuer: i, client: reader, tell: tellProblem, outcomes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "iam4kube_issuer_check", Help: "1 for the outcome of the last check whether the issuer's URL serves the key that signs.",
	}, []string{"outcome"})}
	for _, outcome := range []string{published, unpublished, unreachable} {
		c.outcomes.WithLabelValues(outcome)
	}
	registry.MustRegister(c.outcomes)
	return c
}

// Run checks at the start, whenever the keys have changed, and now and then, until ctx ends.
func (c *Checker) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.issuer.changed:
		case <-timer.C:
		}
		err := c.check(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.report(err)
		if err == nil {
			timer.Reset(checkEvery)
		} else {
			timer.Reset(recheckEvery)
		}
	}
}

func (c *Checker) check(ctx context.Context) error {
	ids, err := served(ctx, c.client, c.issuer.url)
	if err != nil {
		return err
	}
	if id := c.issuer.signing.Load().keys.current.id; !ids[id] {
		return fmt.Errorf("%s serves no key %s, which signs", c.issuer.url, id)
	}
	return nil
}

// report tells of an outcome: in the log where it is another than the last.
func (c *Checker) report(err error) {
	outcome := unpublished
	switch {
	case err == nil:
		outcome = published
	case errors.Is(err, errUnreachable):
		outcome = unreachable
	default:
		c.tell(err.Error())
	}
	for _, o := range []string{published, unpublished, unreachable} {
		c.outcomes.WithLabelValues(o).Set(map[bool]float64{true: 1}[o == outcome])
	}
	if outcome == c.last {
		return
	}
	c.last = outcome
	switch outcome {
	case published:
		c.issuer.log.Info("the issuer's URL serves the key that signs", zap.String(logging.Issuer, c.issuer.url))
	case unreachable:
		c.issuer.log.Info("cannot tell from here whether the issuer's URL serves the key that signs", zap.String(logging.Issuer, c.issuer.url), zap.Error(err))
	default:
		c.issuer.log.Warn("the issuer's URL does not serve the key that signs: AWS will refuse its tokens", zap.String(logging.Issuer, c.issuer.url), zap.Error(err))
	}
}
