package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// How many follow, and how many changes there are for them to follow.
const (
	benchStreams = 1000
	benchChanges = 200
)

// From a change of one machine to the last of a thousand view streams, what it
// costs the controller, and that neither grows with the mesh; against etcd's own
// watchers on the same machine. All of it on the loopback of one host: what is
// measured is the programs.
func TestBenchStreams(t *testing.T) {
	benchmark(t)
	e, err := world.NewEtcd(t.Context(), world.EtcdConfig{Lab: newLab(t), Bin: bin(t), Members: 1})
	if err != nil {
		t.Fatal(err)
	}
	b := &streamBench{t: t, etcd: e, host: e.Members[0].Host}
	b.client = b.etcdClient()
	theirs := b.etcdFanOut()
	theirs.print("etcd_fan_out")

	b.startController()
	before := b.controllerMemory()
	token := b.token(benchStreams + 1)
	b.enrol(token)
	s := b.streams("view", "--token", token)
	idle := b.cpuWhile(b.controller, func() { time.Sleep(3 * time.Second) })
	figure("streams_idle_cpu", idle.Seconds()/3*100, "%", "")
	var ours, last fanOut
	for i, machines := range []int{0, 10_000, 100_000} {
		b.fill(machines)
		name := fmt.Sprintf("fan_out_%d", max(machines, benchStreams))
		x := b.viewFanOut(s, name)
		x.print(name)
		if i == 0 {
			ours = x
			// By now what the snapshots took has been given back.
			after := b.controllerMemory()
			figure("stream_memory", (after.inUse-before.inUse)/benchStreams/1000, "kB", "")
			figure("stream_memory_resident", (after.resident-before.resident)/benchStreams/1000, "kB", "")
		}
		last = x
	}
	figure("fan_out_cpu_vs_etcd", ours.cpu/theirs.cpu, "ratio", "<= 0.33")
	figure("fan_out_p99_vs_etcd", ours.p99/theirs.p99, "ratio", "<= 0.33")
	figure("fan_out_cpu_100000_vs_1000", last.cpu/ours.cpu, "ratio", "<= 1.1")
	figure("fan_out_p99_100000_vs_1000", last.p99/ours.p99, "ratio", "<= 1.1")
	s.stop()
	b.coldStart()
}

// streamBench is one host on which all of it runs.
type streamBench struct {
	t          *testing.T
	etcd       *world.Etcd
	host       *lab.Host
	client     *clientv3.Client
	controller *lab.Process
	url        string
	admin      *api.Client // the operator's
	node       *api.Client // of a host that makes the changes
	pin        string
	filled     int
}

// fanOut is what a change cost, on average, and took, to the last who follows, in
// milliseconds.
type fanOut struct {
	p50, p99, cpu, storeCPU, bytes, encoded float64
}

func (f fanOut) print(name string) {
	figure(name+"_p50", f.p50, "ms", "")
	figure(name+"_p99", f.p99, "ms", "")
	figure(name+"_cpu", f.cpu, "ms/change", "")
	if f.storeCPU > 0 {
		figure(name+"_store_cpu", f.storeCPU, "ms/change", "")
	}
	if f.encoded > 0 {
		figure(name+"_encoded", f.encoded, "times/change", "")
	}
	figure(name+"_bytes", f.bytes/benchStreams, "B/change and stream", "")
}

func (b *streamBench) etcdClient() *clientv3.Client {
	b.t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: b.etcd.Endpoints(), TLS: b.etcd.TLS(), Logger: zap.NewNop(), DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return b.host.DialContext(ctx, "tcp", addr)
		})},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// streams starts the program with those who follow and waits until they do.
func (b *streamBench) streams(kind string, args ...string) *followers {
	b.t.Helper()
	server := b.url
	if kind == "watch" {
		server = b.etcd.Members[0].URL()
	}
	args = append([]string{kind, "--server", server, "--count", strconv.Itoa(benchStreams)}, args...)
	p, err := b.host.Start("streams-"+kind, filepath.Join(bin(b.t), "streams"), args, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	f := &followers{b: b, process: p}
	if r := f.next(3 * time.Minute); r.Ready != benchStreams {
		b.t.Fatalf("the streams say %+v", r)
	}
	time.Sleep(2 * time.Second) // what the beginning left behind
	return f
}

// followers is the program that follows.
type followers struct {
	b       *streamBench
	process *lab.Process
	log     *os.File
	lines   *bufio.Reader
	partial []byte
}

// report is a line of what it prints.
type report struct {
	Ready       int
	Change      string
	First, Last int64
	Bytes       int64
	Broken      int64
}

func (f *followers) stop() {
	if err := f.process.Stop(); err != nil {
		f.b.t.Error(err)
	}
}

// next returns its next line.
func (f *followers) next(within time.Duration) (r report) {
	t := f.b.t
	t.Helper()
	if f.log == nil {
		var err error
		if f.log, err = os.Open(f.process.LogFile()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.log.Close() })
		f.lines = bufio.NewReader(f.log)
	}
	for deadline := time.Now().Add(within); ; time.Sleep(time.Millisecond) {
		text, err := f.lines.ReadBytes('\n')
		f.partial = append(f.partial, text...)
		if err == nil {
			line := f.partial
			f.partial = nil
			if bytes.HasPrefix(line, []byte("{")) && json.Unmarshal(line, &r) == nil {
				return r
			}
			t.Logf("the streams: %s", line)
			continue
		}
		if err != io.EOF || f.process.Exited() || time.Now().After(deadline) {
			t.Fatalf("the streams report nothing: %v; the last is %q", err, f.process.LastLine())
		}
	}
}

// measure makes changes, each when all have seen the one before.
func (f *followers) measure(server *lab.Process, change func(i int) (name string)) fanOut {
	t := f.b.t
	t.Helper()
	var took []time.Duration
	var bytes [2]int64
	var broken [2]int64
	cpu := f.b.cpuWhile(server, func() {
		for i := range benchChanges {
			began := time.Now().UnixNano()
			name := change(i)
			r := f.next(30 * time.Second)
			if r.Change != name {
				t.Fatalf("the streams saw %q, want %q", r.Change, name)
			}
			took = append(took, time.Duration(r.Last-began))
			if i == 0 {
				bytes[0], broken[0] = r.Bytes, r.Broken
			}
			bytes[1], broken[1] = r.Bytes, r.Broken
		}
	})
	if broken[1] != broken[0] {
		t.Errorf("%d streams were broken off meanwhile", broken[1]-broken[0])
	}
	slices.Sort(took)
	return fanOut{
		p50: percentile(took, 0.50), p99: percentile(took, 0.99), cpu: cpu.Seconds() * 1000 / benchChanges,
		bytes: float64(bytes[1]-bytes[0]) / (benchChanges - 1),
	}
}

// etcdFanOut is as many watchers at etcd, and as many writes.
func (b *streamBench) etcdFanOut() fanOut {
	b.t.Helper()
	flags := b.etcd.Flags()
	pair := map[string]string{}
	for i := 0; i+1 < len(flags); i += 2 {
		pair[strings.TrimPrefix(flags[i], "--etcd-")] = flags[i+1]
	}
	s := b.streams("watch", "--ca", pair["ca"], "--cert", pair["cert"], "--key", pair["key"])
	defer s.stop()
	value := string(b.encoded(mesh.Machine{
		Org: "acme", ID: "change-100", App: "web", Host: "stream-100", State: mesh.StateStarted, Created: time.Now(),
		Endpoint: netip.MustParsePrefix("fd12:3456:789a:1:300:5:1::/112"),
	}))
	return s.measure(b.etcd.Members[0].Process, func(i int) string {
		var err error
		name := fmt.Sprint("change-", i/2)
		if i%2 == 1 {
			_, err = b.client.Delete(b.t.Context(), "/bench/"+name)
			name = "-" + name
		} else {
			_, err = b.client.Put(b.t.Context(), "/bench/"+name, value)
			name = "+" + name
		}
		if err != nil {
			b.t.Fatal(err)
		}
		return name
	})
}

func (b *streamBench) encoded(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

// cpuWhile returns the processor time of a process while do runs.
func (b *streamBench) cpuWhile(p *lab.Process, do func()) time.Duration {
	before := b.cpu(p)
	do()
	return b.cpu(p) - before
}

func (b *streamBench) cpu(p *lab.Process) time.Duration {
	b.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		b.t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
