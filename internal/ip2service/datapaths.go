//go:build !podonly

package ip2service

import (
	"context"
	"errors"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/ip2service/bpf"
	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// DataPaths are what --data-path accepts, the default first.
var DataPaths = []string{dataPathNFTables, dataPathEBPF, dataPathAuto}

const (
	dataPathNFTables = "nftables"
	dataPathEBPF     = "ebpf"
	dataPathAuto     = "auto"
)

// programsPath is a data path of programs, bpf.Kernel.
type programsPath interface {
	dataPath
	Programs() bpf.Programs
	// Attached says whether there are programs already, of this run or an earlier one.
	Attached() bool
}

// dataPaths bring a node's routes into netfilter, and where eBPF is chosen into that, too.
// Each catches what the other one does not see.
type dataPaths struct {
	rules    dataPath
	programs programsPath
	log      *zap.Logger

	mu sync.Mutex
	// choice is that of --data-path, and with auto what it has come to.
	choice string
	// inForce says that the programs are as they should be, or are about to be.
	inForce bool
}

func newDataPaths(cfg Config, log *zap.Logger) *dataPaths {
	return &dataPaths{
		rules: nftables.Kernel{}, programs: bpf.New(cfg.BPFDir), log: log,
		choice: cfg.DataPath, inForce: cfg.DataPath != dataPathNFTables,
	}
}

// nodePath is what a node's routes are brought into.
func nodePath(cfg Config, log *zap.Logger) dataPath { return newDataPaths(cfg, log) }

// Sync implements dataPath. Neither data path waits for the other one to succeed.
func (d *dataPaths) Sync(want routes.Routes) (changed bool, err error) {
	changed, err = d.rules.Sync(want)
	if choice := d.chosen(); choice != dataPathNFTables {
		// Nothing is left to rules that may not be there.
		want.Bypassed = want.Bypassed || err != nil
		// Programs that are there are not given up for rules that may not see what they see.
		kept := choice != dataPathAuto || d.programs.Attached()
		also, programsErr := d.programs.Sync(want)
		if kept || !errors.Is(programsErr, routes.ErrUnsupported) && !errors.Is(programsErr, routes.ErrPermission) {
			d.led(programsErr == nil)
			return changed || also, errors.Join(err, programsErr)
		}
		d.log.Warn("nftables rules alone lead what pods send, as eBPF programs cannot be had here", zap.Error(programsErr))
		d.choose(dataPathNFTables)
	}
	if err != nil {
		return changed, err // the programs of an earlier run go when the rules are in
	}
	removed, err := d.programs.Remove()
	if removed {
		d.log.Info("removed the eBPF programs of an earlier run, as the rules are in")
	}
	return changed, err
}

func (d *dataPaths) chosen() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.choice
}

func (d *dataPaths) choose(choice string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.choice, d.inForce = choice, false
}

// led keeps whether the programs are in force. Once they were, auto has chosen them.
func (d *dataPaths) led(inForce bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inForce = inForce; inForce && d.choice == dataPathAuto {
		d.choice = dataPathEBPF
		d.log.Info("eBPF programs lead what pods send, and nftables rules guard beside them: this node can have both, and neither sees everything")
	}
}

// Netfilter says whether what pods send is caught by netfilter alone.
func (d *dataPaths) Netfilter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.inForce
}

// Watch implements dataPath.
func (d *dataPaths) Watch(ctx context.Context, changed func()) error {
	if d.chosen() == dataPathNFTables {
		return d.rules.Watch(ctx, changed)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error)
	for _, path := range []dataPath{d.rules, d.programs} {
		go func() {
			err := path.Watch(ctx, changed)
			cancel() // what is not watched by both is not watched
			ended <- err
		}()
	}
	return errors.Join(<-ended, <-ended)
}

// Counters implements dataPath.
func (d *dataPaths) Counters() (map[routes.Family]routes.Counters, error) {
	sum := map[routes.Family]routes.Counters{}
	for _, path := range []dataPath{d.rules, d.programs} {
		counters, err := path.Counters()
		if err != nil {
			return nil, err
		}
		for family, c := range counters {
			sum[family] = routes.Counters{Translated: sum[family].Translated + c.Translated, Rejected: sum[family].Rejected + c.Rejected}
		}
	}
	return sum, nil
}

// Remove implements dataPath. The programs go last: they do not need the rules.
func (d *dataPaths) Remove() (removed bool, err error) {
	removed, err = d.rules.Remove()
	also, programsErr := d.programs.Remove()
	return removed || also, errors.Join(err, programsErr)
}

var (
	pathConnectionsDesc = prometheus.NewDesc("iam4kube_data_path_connections_total",
		"Connections that were led to an endpoint, by data path, since its counters are there.", []string{"data_path", "family"}, nil)
	pathRefusalsDesc = prometheus.NewDesc("iam4kube_data_path_refusals_total",
		"Packets and calls that were refused, by data path, since its counters are there.", []string{"data_path", "family"}, nil)
	programsDesc = prometheus.NewDesc("iam4kube_bpf_programs",
		"eBPF programs that are attached, and those of them that the kernel runs for pods.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (d *dataPaths) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{pathConnectionsDesc, pathRefusalsDesc, programsDesc} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (d *dataPaths) Collect(ch chan<- prometheus.Metric) {
	for name, path := range map[string]dataPath{dataPathNFTables: d.rules, dataPathEBPF: d.programs} {
		counters, err := path.Counters()
		if err != nil {
			continue // an invalid metric would take all others with it
		}
		for _, family := range routes.Families {
			ch <- prometheus.MustNewConstMetric(pathConnectionsDesc, prometheus.CounterValue, float64(counters[family].Translated), name, string(family))
			ch <- prometheus.MustNewConstMetric(pathRefusalsDesc, prometheus.CounterValue, float64(counters[family].Rejected), name, string(family))
		}
	}
	p := d.programs.Programs()
	ch <- prometheus.MustNewConstMetric(programsDesc, prometheus.GaugeValue, float64(p.Attached), "attached")
	ch <- prometheus.MustNewConstMetric(programsDesc, prometheus.GaugeValue, float64(p.Effective), "effective")
}
