package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// tooLate is from when on lateness explains a failure: within this the AWS SDK for Go, the most
// impatient of the demo's programs, wants a connection.
const tooLate = 250 * time.Millisecond

// delay is a stretch of time in which a program of this machine was given a processor so much
// too late.
type delay struct {
	from, to time.Time
	late     time.Duration
}

// watch sees how late this program's own ticks are: for so long, nothing of the demo can count
// on a processor.
type watch struct {
	stop func()

	mutex  sync.Mutex
	worst  time.Duration
	delays []delay
}

const tickEvery = 20 * time.Millisecond

// startWatch watches until stop is called.
func startWatch() *watch {
	w := &watch{}
	end, ended := make(chan struct{}), make(chan struct{})
	w.stop = sync.OnceFunc(func() {
		close(end)
		<-ended
	})
	go func() {
		defer close(ended)
		for {
			due := time.Now().Add(tickEvery)
			select {
			case <-time.After(tickEvery):
				w.tick(due, time.Now())
			case <-end:
				return
			}
		}
	}()
	return w
}

// tick takes down one that was due and came now. Only delays that explain something are kept.
func (w *watch) tick(due, now time.Time) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	late := now.Sub(due)
	w.worst = max(w.worst, late)
	if late >= tooLate {
		w.delays = append(w.delays, delay{due, now, late})
	}
}

// reset forgets how late a tick was at most; the delays stay, for what they explain later.
func (w *watch) reset() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.worst = 0
}

// seen is how late a tick was at most, and the delays.
func (w *watch) seen() (worst time.Duration, delays []delay) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.worst, slices.Clone(w.delays)
}

// processors is what the kernel says of them at a moment: the files of /proc as they are.
type processors struct {
	at                      time.Time
	loadavg, stat, pressure string
}

// readProcessors leaves empty what this kernel does not have.
func readProcessors() processors {
	read := func(path string) string {
		content, _ := os.ReadFile(path)
		return string(content)
	}
	return processors{time.Now(), read("/proc/loadavg"), read("/proc/stat"), read("/proc/pressure/cpu")}
}

// until tells how busy the processors were between two moments, as far as the kernel says so.
func (p processors) until(later processors) string {
	var figures []string
	if load, _, ok := strings.Cut(later.loadavg, " "); ok {
		figures = append(figures, fmt.Sprintf("load average %s on %d processors", load, runtime.NumCPU()))
	}
	before, after := jiffies(p.stat), jiffies(later.stat)
	if len(before) > stealField && len(after) > stealField {
		all := int64(0)
		for i := range stealField + 1 { // what follows is contained in them
			all += after[i] - before[i]
		}
		idle := after[idleField] - before[idleField] + after[ioWaitField] - before[ioWaitField]
		if all > 0 {
			figures = append(figures, fmt.Sprintf("%d%% idle", 100*idle/all), fmt.Sprintf("%d%% stolen by its host", 100*(after[stealField]-before[stealField])/all))
		}
	}
	if elapsed := later.at.Sub(p.at).Microseconds(); elapsed > 0 && p.pressure != "" && later.pressure != "" {
		figures = append(figures, fmt.Sprintf("something waited for a processor %d%% of the time", min(100, 100*(stalled(later.pressure)-stalled(p.pressure))/elapsed)))
	}
	return strings.Join(figures, ", ")
}

// The fields of the first line of /proc/stat, see proc(5).
const idleField, ioWaitField, stealField = 3, 4, 7

// jiffies are the figures of all processors together.
func jiffies(stat string) (figures []int64) {
	line, _, _ := strings.Cut(strings.TrimPrefix(stat, "cpu "), "\n")
	for field := range strings.FieldsSeq(line) {
		figure, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return nil
		}
		figures = append(figures, figure)
	}
	return figures
}

// stalled is for how many microseconds something that could run did not.
func stalled(pressure string) (total int64) {
	line, _, _ := strings.Cut(pressure, "\n")
	if _, text, ok := strings.Cut(line, "total="); ok {
		total, _ = strconv.ParseInt(text, 10, 64)
	}
	return total
}
