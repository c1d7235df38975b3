package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
)

// etcdFaults is what happens to the members of a cluster on which two controllers
// work.
func etcdFaults(t *testing.T) {
	l := newLab(t)
	e := newEtcd(t, l)
	f := newField(t, world.Config{Lab: l, Etcd: e, Controllers: 2}, "fra1", "ams1")

	f.fault(t, "follower killed", func(r *row) {
		m, err := e.Follower(t.Context())
		r.must(err)
		r.must(m.Kill())
		r.evidence("it was killed", soon, ended(m.Process, "signal: killed"))
		r.during("writes to be acknowledged", 2*soon, r.ledger.acknowledges(30))
		r.must(m.Start(), e.Await(t.Context()))
	})

	f.fault(t, "leader killed", func(r *row) {
		led := r.leader(e)
		r.must(led.Kill())
		r.evidence("another one leads", 2*soon, r.elected(e, led))
		r.during("writes to be acknowledged", 2*soon, r.ledger.acknowledges(30))
		r.must(led.Start(), e.Await(t.Context()))
	})

	f.fault(t, "leader paused", func(r *row) {
		led := r.leader(e)
		r.must(led.Process.Pause())
		r.evidence("the kernel has stopped it", soon, stopped(led.Process))
		r.evidence("another one leads", 2*soon, r.elected(e, led))
		r.during("writes to be acknowledged", 4*soon, r.ledger.acknowledges(30))
		r.must(led.Process.Continue(), e.Await(t.Context()))
	})

	f.fault(t, "leader cut off from the others", func(r *row) {
		led := r.leader(e)
		r.split(e, led.Name(), l.Switch().Cut)
		r.evidence("packets are held back", soon, r.cut(led.Name(), r.others(e, led)[0].Name()))
		r.evidence("another one leads", 2*soon, r.elected(e, led))
		r.evidence("it knows that it does not lead", 2*soon, func(ctx context.Context) (string, error) {
			s, err := led.Status(ctx)
			if err == nil && s.Leader != 0 {
				err = fmt.Errorf("it says that %x leads", s.Leader)
			}
			return "it knows no leader", err
		})
		// The controllers reach all members still: whoever asked the one that is cut off
		// has to find another one.
		r.converge()
		r.during("writes to be acknowledged", 4*soon, r.ledger.acknowledges(30))
		r.split(e, led.Name(), l.Switch().Restore)
		r.must(e.Await(t.Context()))
	})

	f.fault(t, "quorum lost", func(r *row) { quorumLost(r, e) })
	f.fault(t, "compaction under a slow watcher", func(r *row) { compaction(r, e) })
	f.fault(t, "member replaced", func(r *row) { memberReplaced(r, e) })
	f.fault(t, "member's disk full", func(r *row) { memberDiskFull(r, e) })
}

// quorumLost kills two members of three: writes are refused, everything else goes on
// and says how old it is.
func quorumLost(r *row, e *world.Etcd) {
	left, gone := e.Members[0], e.Members[1:]
	for _, m := range gone {
		r.must(m.Kill())
		r.evidence(m.Name()+" was killed", soon, ended(m.Process, "signal: killed"))
	}
	r.evidence("the third has no leader", 2*soon, func(ctx context.Context) (string, error) {
		s, err := left.Status(ctx)
		if err == nil && s.Leader != 0 {
			err = fmt.Errorf("it says that %x leads", s.Leader)
		}
		return "no leader", err
	})
	r.evidence("writes are refused", 4*soon, r.ledger.refused("etcd"))
	for _, c := range r.Controllers {
		r.evidence("reads of "+c.Name()+" say their age", 4*soon, r.aged(c))
	}
	for _, h := range r.Hosts {
		s, err := r.Status(r.Context(), h)
		if err != nil || !s.Connected {
			r.Errorf("host %s follows no view: connected %v, %v", h.Name(), s.Connected, err)
		}
	}
	for _, m := range gone {
		r.must(m.Start())
	}
	r.must(e.Await(r.Context()))
	r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
}

// compaction pauses a controller, drops the history that it has not read, and lets it
// go on: it lists anew, and has neither less nor more than the other.
func compaction(r *row, e *world.Etcd) {
	slow := r.Controllers[1]
	r.must(slow.Process.Pause())
	r.evidence("the kernel has stopped the controller", soon, stopped(slow.Process))
	// More than what fits on the way to it.
	stop := r.ledger.more(24, 0)
	r.Cleanup(stop)
	r.during("many changes", 12*soon, r.ledger.acknowledges(400))
	stop()
	s, err := e.Members[0].Status(r.Context())
	r.must(err)
	r.must(e.Members[0].Compact(r.Context(), s.Header.Revision))
	r.must(slow.Process.Continue())
	r.evidence("it lists anew", 4*soon, says(slow.Process, "mirror lists anew", "compacted"))
	r.during("both controllers to say the same", convergeWithin, func(ctx context.Context) error {
		var lists [2][]api.ClientInfo
		for i, c := range r.Controllers {
			if err := r.ledger.request(ctx, http.MethodGet, c.URL+"/v1/orgs/acme/clients", nil, &lists[i], false); err != nil {
				return err
			}
		}
		same := slices.EqualFunc(lists[0], lists[1], func(a, b api.ClientInfo) bool { return a.Name == b.Name && a.Address == b.Address })
		if !same {
			return fmt.Errorf("%s has %d clients, %s has %d", r.Controllers[0].Name(), len(lists[0]), slow.Name(), len(lists[1]))
		}
		return nil
	})
}

// memberReplaced takes a member and its data away and puts an empty one in its place.
func memberReplaced(r *row, e *world.Etcd) {
	m, err := e.Follower(r.Context())
	r.must(err)
	before, err := m.Status(r.Context())
	r.must(err)
	r.must(e.Replace(r.Context(), m))
	r.evidence("it is another one", soon, func(ctx context.Context) (string, error) {
		now, err := m.Status(ctx)
		if err == nil && (now.Header.Member == before.Header.Member || now.Header.Cluster != before.Header.Cluster) {
			err = fmt.Errorf("it is member %x of cluster %x", now.Header.Member, now.Header.Cluster)
		}
		return fmt.Sprintf("member %x is %x now, of the same cluster", before.Header.Member, now.Header.Member), err
	})
	r.during("writes to be acknowledged", 2*soon, r.ledger.acknowledges(30))
}

// memberDiskFull leaves a member no space: it ends, and the others go on.
func memberDiskFull(r *row, e *world.Etcd) {
	m, err := e.Follower(r.Context())
	r.must(err)
	r.must(m.Kill())
	disk, err := m.MountDisk(r.Context(), m.DataDir, 400<<20)
	r.must(err)
	r.must(m.Start(), e.Await(r.Context()))
	r.must(disk.Fill(0), r.leader(e).Grow(r.Context(), 40))
	r.evidence("it ends for want of space", 8*soon, func(ctx context.Context) (string, error) {
		line, err := says(m.Process, "no space left on device")(ctx)
		if err == nil && !m.Process.Exited() {
			err = fmt.Errorf("it runs still: %s", line)
		}
		return line, err
	})
	r.during("writes to be acknowledged", 2*soon, r.ledger.acknowledges(30))
	r.must(disk.Free())
	r.must(m.Start(), e.Await(r.Context()))
}

// leader is the member that leads.
func (r *row) leader(e *world.Etcd) *world.EtcdMember {
	r.Helper()
	var led *world.EtcdMember
	r.during("a leader", 2*soon, func(ctx context.Context) (err error) {
		led, _, err = e.Leader(ctx)
		return err
	})
	return led
}

// elected is evidence that another member leads than before, in a later term.
func (r *row) elected(e *world.Etcd, before *world.EtcdMember) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		now, term, err := e.Leader(ctx)
		if err == nil && now == before {
			err = fmt.Errorf("%s leads still, in term %d", now.Name(), term)
		}
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s led, %s leads in term %d", before.Name(), now.Name(), term), nil
	}
}

func (r *row) others(e *world.Etcd, m *world.EtcdMember) []*world.EtcdMember {
	return slices.DeleteFunc(slices.Clone(e.Members), func(o *world.EtcdMember) bool { return o == m })
}

// split cuts, or heals, what is between a member and the others.
func (r *row) split(e *world.Etcd, name string, how func(a, b string) error) {
	r.Helper()
	for _, m := range e.Members {
		if m.Name() != name {
			r.must(how(name, m.Name()))
		}
	}
}

// slowEtcdFaults is a slow disk under the leader of a cluster that waits for its
// disks.
func slowEtcdFaults(t *testing.T) {
	l := newLab(t)
	e, err := world.NewEtcd(t.Context(), world.EtcdConfig{Lab: l, Bin: bin(t), Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	f := newField(t, world.Config{Lab: l, Etcd: e, Controllers: 1}, "fra1", "ams1")
	f.fault(t, "leader's disk slow", func(r *row) {
		r.possible(lab.CheckSlowDisk())
		led := r.leader(e)
		r.must(led.Kill())
		disk, err := led.MountSlowDisk(led.DataDir)
		r.must(err)
		r.must(led.Start(), e.Await(t.Context()), led.Lead(t.Context()))
		if now := r.leader(e); now != led {
			t.Fatalf("%s leads, not the one with the slow disk", now.Name())
		}
		const slow = 700 * time.Millisecond
		disk.SetSync(slow)
		const sum, count = "etcd_disk_wal_fsync_duration_seconds_sum", "etcd_disk_wal_fsync_duration_seconds_count"
		sum0, err := led.Metric(t.Context(), sum)
		r.must(err)
		count0, err := led.Metric(t.Context(), count)
		r.must(err)
		r.evidence("its fsyncs take long, by its own measure", 4*soon, func(ctx context.Context) (string, error) {
			sum1, err := led.Metric(ctx, sum)
			if err != nil {
				return "", err
			}
			count1, err := led.Metric(ctx, count)
			if err != nil {
				return "", err
			}
			if n := count1 - count0; n < 3 || (sum1-sum0)/n < 0.8*slow.Seconds() {
				return "", fmt.Errorf("%g took %gs", n, sum1-sum0)
			}
			return fmt.Sprintf("%g took %.2fs", count1-count0, sum1-sum0), nil
		})
		r.during("writes to be acknowledged", 4*soon, r.ledger.acknowledges(6))
		disk.SetSync(0)
	})
}
