package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/mesh/metrics"
	"github.com/weftmesh/weft/mesh/store"
)

// alarmsEvery is how often the alarms of etcd are looked at.
const alarmsEvery = 2 * time.Second

// condition is how etcd is, as far as somebody tells.
func (s *server) condition() []store.Condition {
	if s.cfg.Etcd == nil {
		return nil
	}
	return s.cfg.Etcd()
}

// alarms are those of all members, each once.
func alarms(members []store.Condition) []string {
	var out []string
	for _, m := range members {
		out = append(out, m.Alarms...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// kindOf is the name of an alarm.
func kindOf(alarm string) string {
	kind, _, _ := strings.Cut(alarm, ":")
	return kind
}

// etcdStats is what Prometheus learns about etcd.
func etcdStats(members []store.Condition) (out []metrics.Stat) {
	for _, m := range members {
		labels := []metrics.Label{{Key: "member", Value: m.Member}}
		out = append(out,
			metrics.Stat{Name: "weft_etcd_size_bytes", Help: "Size of an etcd member's database file.", Labels: labels, Value: float64(m.Size)},
			metrics.Stat{Name: "weft_etcd_in_use_bytes", Help: "What of an etcd member's database file is in use.", Labels: labels, Value: float64(m.InUse)},
			metrics.Stat{Name: "weft_etcd_quota_bytes", Help: "Size at which an etcd member takes no more writes.", Labels: labels, Value: float64(m.Quota)},
		)
		for _, kind := range []string{store.AlarmNoSpace, store.AlarmCorrupt} {
			raised := 0.0
			if slices.ContainsFunc(m.Alarms, func(a string) bool { return kindOf(a) == kind }) {
				raised = 1
			}
			out = append(out, metrics.Stat{
				Name: "weft_etcd_alarm", Help: "Whether an etcd member has raised an alarm.",
				Labels: append(slices.Clone(labels), metrics.Label{Key: "alarm", Value: kind}), Value: raised,
			})
		}
	}
	return out
}

// watchAlarms logs the alarms of etcd when they come and go, and puts them into the
// audit log when that is possible again. It runs until ctx ends.
func (s *server) watchAlarms(ctx context.Context) {
	tick := time.NewTicker(alarmsEvery)
	defer tick.Stop()
	w := alarmLog{raised: map[string]time.Time{}}
	for {
		members := s.condition()
		raised, ended := w.look(alarms(members), time.Now())
		if len(members) > 0 && members[0].Member != "" { // the one inside says so itself
			for _, alarm := range raised {
				s.log.Error("etcd raises an alarm", "alarm", alarm)
			}
			for _, kind := range ended {
				s.log.Info("an alarm of etcd has ended", "alarm", kind)
			}
		}
		// Several controllers see the same.
		if s.store.Elected() {
			w.report(func(target, note string) error {
				return s.store.Note(ctx, "controller/"+s.cfg.Name, "etcd.alarm", target, note)
			})
		} else {
			w.notes = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// alarmLog remembers which alarms were raised when.
type alarmLog struct {
	raised map[string]time.Time // by kind
	notes  []alarmNote          // for the audit log; while etcd is full it takes none
}

type alarmNote struct{ kind, note string }

// maxNotes bounds what waits for the audit log.
const maxNotes = 100

// look compares the alarms that there are with those of before.
func (w *alarmLog) look(now []string, at time.Time) (raised, ended []string) {
	there := map[string]bool{}
	for _, alarm := range now {
		kind := kindOf(alarm)
		if _, known := w.raised[kind]; !known {
			w.raised[kind] = at
			raised = append(raised, alarm)
			w.note(kind, "raised "+at.UTC().Format(time.RFC3339))
		}
		there[kind] = true
	}
	for kind, since := range w.raised {
		if !there[kind] {
			delete(w.raised, kind)
			ended = append(ended, kind)
			w.note(kind, fmt.Sprintf("ended %s, after %s", at.UTC().Format(time.RFC3339), at.Sub(since).Round(time.Second)))
		}
	}
	return raised, ended
}

func (w *alarmLog) note(kind, text string) {
	if len(w.notes) < maxNotes {
		w.notes = append(w.notes, alarmNote{kind, text})
	}
}

// report hands on what was noted, in order, until it is not taken.
func (w *alarmLog) report(to func(target, note string) error) {
	for len(w.notes) > 0 && to(w.notes[0].kind, w.notes[0].note) == nil {
		w.notes = w.notes[1:]
	}
}
