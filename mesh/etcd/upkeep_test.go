package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const tinyQuota = 4 << 20

// idle is a server whose upkeep the test calls itself.
func idle(dir string) Config {
	c := testConfig(dir)
	c.QuotaBytes, c.UpkeepEvery = tinyQuota, time.Hour
	return c
}

func awaitTrue(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// fillUp writes until etcd refuses, each value to a key of its own or all to one,
// and returns how many were taken.
func fillUp(t *testing.T, s *Server, key func(i int) string) int {
	t.Helper()
	big := strings.Repeat("x", 64<<10)
	for i := range 1000 {
		_, err := s.Client().Put(t.Context(), key(i), fmt.Sprint(i, " ", big))
		if errors.Is(err, rpctypes.ErrNoSpace) {
			return i
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the quota does not hold")
	return 0
}

// fillWhole fills it with so much that no upkeep makes room, and returns how many
// keys, distinct, there are.
func fillWhole(t *testing.T, s *Server) (keys int) {
	t.Helper()
	for {
		keys += fillUp(t, s, func(i int) string { return distinct(keys + i) })
		if err := s.makeRoom(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(s.Alarms()) > 0 {
			return keys
		}
	}
}

// lost returns the keys of distinct that are not as fillWhole wrote them.
func lost(t *testing.T, s *Server, keys int) (out []string) {
	for i := range keys {
		if got := get(t, s.Client(), distinct(i)); len(got) < 64<<10 {
			out = append(out, distinct(i))
		}
	}
	return out
}

func distinct(i int) string { return fmt.Sprintf("/big/%03d", i) }

// The drill of a full store (kops #10663): writes are refused, the alarm says so
// in plain words, reading goes on and what is there is left alone. Deleting is
// taken, and then upkeep lets writes through.
func TestKops10663NoSpace(t *testing.T) {
	t.Parallel()
	s := start(t, idle(t.TempDir()))
	keys := fillWhole(t, s)
	if alarms := s.Alarms(); len(alarms) != 1 || !strings.HasPrefix(alarms[0], "NOSPACE: ") || !strings.Contains(alarms[0], "--etcd-quota") {
		t.Fatalf("alarms: %q, want one NOSPACE that names the way out", alarms)
	}
	watch := s.Client().Watch(t.Context(), distinct(0))
	if _, err := s.Client().Put(t.Context(), "k", "v"); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("a write although the data fills the quota: %v", err)
	}
	if lost := lost(t, s, keys); len(lost) > 0 {
		t.Errorf("lost: %q", lost)
	}
	for i := range keys {
		if _, err := s.Client().Delete(t.Context(), distinct(i)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case r := <-watch:
		if len(r.Events) == 0 || r.Events[0].Type != clientv3.EventTypeDelete {
			t.Errorf("the watch heard %+v", r)
		}
	case <-time.After(10 * time.Second):
		t.Error("the watch heard nothing")
	}
	awaitTrue(t, "upkeep makes room", func() bool { // bolt says a moment later what is free
		if err := s.makeRoom(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s.Size().File < tinyQuota/2
	})
	put(t, s.Client(), "k", "v")
	if alarms := s.Alarms(); len(alarms) != 0 {
		t.Errorf("alarms at the end: %q", alarms)
	}
}

// If it is history that fills the file, upkeep finds the way out alone.
func TestNoSpaceByHistoryMakesRoomByItself(t *testing.T) {
	t.Parallel()
	c := idle(t.TempDir())
	c.UpkeepEvery = 50 * time.Millisecond
	var said lockedBuffer
	c.Log = slog.New(slog.NewTextHandler(&said, nil))
	s := start(t, c)
	s.stop() // not yet
	s.upkeep.Wait()
	n := fillUp(t, s, func(int) string { return "same" })
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.upkeep.Go(func() { s.keepUp(ctx) })
	awaitTrue(t, "writes are taken again", func() bool {
		_, err := s.Client().Put(t.Context(), "k", "v")
		return err == nil
	})
	// The value at which it became full may be there although it was refused: etcd
	// looks before it decides and again when it carries out.
	got := get(t, s.Client(), "same")
	if !strings.HasPrefix(got, fmt.Sprint(n-1, " ")) && !strings.HasPrefix(got, fmt.Sprint(n, " ")) {
		t.Errorf("the last value is lost: %.10q", got)
	}
	awaitTrue(t, "the file is small", func() bool {
		put(t, s.Client(), "k", "v")
		return s.Size().File < tinyQuota/2
	})
	if !strings.Contains(said.String(), "etcd has space again") {
		t.Errorf("logged:\n%s", said.String())
	}
}

// The operator's way out: a larger quota at the next start. The alarm, which is
// stored, ends by itself, at once, and nothing is lost.
func TestLargerQuotaEndsNoSpace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := idle(dir)
	var said lockedBuffer
	c.Log = slog.New(slog.NewTextHandler(&said, nil))
	s := start(t, c)
	keys := fillWhole(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, c) // the same quota: still full
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", said.String())
		}
	})
	awaitTrue(t, "it says at once that it is full", func() bool { return strings.Contains(said.String(), `alarm="NOSPACE: the database has`) })
	if len(again.Alarms()) != 1 {
		t.Errorf("alarms: %q", again.Alarms())
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	c.QuotaBytes = 4 * tinyQuota
	larger := start(t, c)
	awaitTrue(t, "the alarm ends", func() bool { return len(larger.Alarms()) == 0 })
	put(t, larger.Client(), "k", "v")
	if lost := lost(t, larger, keys); len(lost) > 0 {
		t.Errorf("lost: %q", lost)
	}
}

// The drill against it all (kops #10663): with compaction on, thousands of changes
// to the same few keys keep the file small and never fill the quota.
func TestKops10663HistoryIsForgotten(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	c.QuotaBytes, c.CompactionRetention, c.UpkeepEvery = 16<<20, time.Second, 100*time.Millisecond
	s := start(t, c)
	value := strings.Repeat("x", 2<<10)
	var largest int64
	const changes = 10000 // 20 MB of history
	for i := range changes {
		put(t, s.Client(), fmt.Sprint("k", i%10), fmt.Sprint(i, value))
		largest = max(largest, s.Size().File)
	}
	for i := range 10 {
		if got := get(t, s.Client(), fmt.Sprint("k", i)); !strings.HasPrefix(got, fmt.Sprint(changes-10+i, "x")) {
			t.Errorf("k%d = %.6q", i, got)
		}
	}
	t.Logf("%d MB written, the file had %d MB at most", changes*len(value)>>20, largest>>20)
	awaitTrue(t, "the history is gone", func() bool {
		put(t, s.Client(), "other", "v") // free pages count with the next commit
		return s.Size().InUse < 4<<20
	})
}

func TestDecisions(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	for _, tt := range []struct {
		name               string
		size               Size
		tight, roomy       bool
		worth, worthIfFull bool
	}{
		{"fresh", Size{1 * mb, 1 * mb, 2048 * mb}, false, true, false, false},
		{"half of a small file is free", Size{100 * mb, 50 * mb, 2048 * mb}, false, true, false, true},
		{"half of a large file is free", Size{200 * mb, 100 * mb, 2048 * mb}, false, true, true, true},
		{"a third is free", Size{300 * mb, 200 * mb, 2048 * mb}, false, true, false, true},
		{"filling", Size{1700 * mb, 1690 * mb, 2048 * mb}, true, true, false, false},
		{"full", Size{2048 * mb, 2040 * mb, 2048 * mb}, true, false, false, false},
		{"full of free space", Size{2048 * mb, 100 * mb, 2048 * mb}, true, false, true, true},
	} {
		got := []bool{tt.size.tight(), tt.size.roomy(), tt.size.worth(false), tt.size.worth(true)}
		want := []bool{tt.tight, tt.roomy, tt.worth, tt.worthIfFull}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: tight, roomy, worth, worth if full: %v, want %v", tt.name, got, want)
		}
	}
}

func TestCorruptIsSaid(t *testing.T) {
	t.Parallel()
	s := start(t, testConfig(t.TempDir()))
	raise := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: uint64(s.etcd.Server.MemberID()), Alarm: pb.AlarmType_CORRUPT}
	if _, err := s.etcd.Server.Alarm(t.Context(), raise); err != nil {
		t.Fatal(err)
	}
	if alarms := s.Alarms(); len(alarms) != 1 || !strings.HasPrefix(alarms[0], "CORRUPT: ") || !strings.Contains(alarms[0], "restore a backup") {
		t.Errorf("alarms: %q", alarms)
	}
	if _, err := s.Client().Put(t.Context(), "k", "v"); !errors.Is(err, rpctypes.ErrCorrupt) {
		t.Errorf("a write: %v", err)
	}
}
