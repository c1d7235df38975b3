package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/store"
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

const benchMetrics = "127.0.0.1:9550"

// startController starts a controller on the cluster, makes the org and takes the
// operator's credential.
func (b *streamBench) startController() {
	t := b.t
	t.Helper()
	dir := filepath.Join(t.TempDir(), "controller")
	b.url = "https://" + netip.AddrPortFrom(b.host.Addr(), 7443).String()
	b.run(dir)
	text, err := os.ReadFile(filepath.Join(dir, "operator.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var f enroll.OperatorFile
	if err := yaml.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	b.pin = f.Pin
	b.admin, err = api.New(api.Config{
		Servers: []string{b.url}, TLS: enroll.ClientTLS(enroll.ClientConfig{Pin: f.Pin}), Bearer: f.Credential, Dial: b.host.DialContext,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.admin.Close)
	b.post("/v1/orgs", api.CreateOrg{Name: "acme"}, nil)
	b.post("/v1/regions", api.CreateRegion{Name: "fra"}, nil)
}

func (b *streamBench) run(dir string) {
	b.t.Helper()
	args := append([]string{"run", "--data-dir", dir, "--listen", strings.TrimPrefix(b.url, "https://"), "--advertise", b.url, "--metrics", benchMetrics}, b.etcd.Flags()...)
	var err error
	if b.controller, err = b.host.Start("controller", filepath.Join(bin(b.t), "weft-controller"), args, nil); err != nil {
		b.t.Fatal(err)
	}
	await(b.t, "the controller", time.Minute, func(ctx context.Context) error {
		_, err := b.scrape(ctx)
		return err
	})
}

func (b *streamBench) post(path string, in, out any) {
	b.t.Helper()
	if err := b.admin.Do(b.t.Context(), http.MethodPost, path, in, out); err != nil {
		b.t.Fatal(err)
	}
}

func (b *streamBench) token(uses int) string {
	b.t.Helper()
	var created api.CreatedToken
	b.post("/v1/tokens", api.CreateToken{Kind: mesh.KindHost, Orgs: []string{mesh.AllOrgs}, Region: "fra", Uses: uses}, &created)
	return created.Token
}

// enrol makes a host that carries the org, without a stream of its own.
func (b *streamBench) enrol(token string) {
	t := b.t
	t.Helper()
	keys, err := enroll.LoadOrCreateKeys(filepath.Join(t.TempDir(), "writer"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := keys.TLSPublic()
	if err != nil {
		t.Fatal(err)
	}
	var answer api.EnrollResponse
	b.post("/v1/enroll", api.EnrollRequest{Token: token, Name: "writer", Key: keys.WireGuard.PublicKey().String(), TLSKey: public, Endpoint: "192.0.2.1:51820"}, &answer)
	certificate, err := keys.Certificate(answer.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	trust := enroll.ClientConfig{Roots: answer.Roots, Certificate: func() *tls.Certificate { return certificate }}
	if b.node, err = api.New(api.Config{Servers: []string{b.url}, TLS: enroll.ClientTLS(trust), Dial: b.host.DialContext}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.node.Close)
	if err := b.node.Do(t.Context(), http.MethodPost, "/v1/orgs/acme/machines", api.CreateMachine{ID: "stays", App: "stay"}, nil); err != nil {
		t.Fatal(err)
	}
}

// viewFanOut makes changes of machines through the API, as their hosts do.
func (b *streamBench) viewFanOut(s *followers, name string) fanOut {
	b.t.Helper()
	encoded, stored := b.metric("weft_controller_deltas_encoded_total"), b.cpu(b.etcd.Members[0].Process)
	x := s.measure(b.controller, func(i int) string {
		id := fmt.Sprintf("change-%s-%d", strings.ReplaceAll(name, "_", "-"), i/2)
		if i%2 == 0 {
			if err := b.node.Do(b.t.Context(), http.MethodPost, "/v1/orgs/acme/machines", api.CreateMachine{ID: id, App: "stay"}, nil); err != nil {
				b.t.Fatal(err)
			}
			return "+" + id
		}
		if err := b.node.Do(b.t.Context(), http.MethodDelete, "/v1/orgs/acme/machines/"+id, nil, nil); err != nil {
			b.t.Fatal(err)
		}
		return "-" + id
	})
	x.storeCPU = (b.cpu(b.etcd.Members[0].Process) - stored).Seconds() * 1000 / benchChanges
	x.encoded = (b.metric("weft_controller_deltas_encoded_total") - encoded) / benchChanges
	return x
}

// scrape returns the controller's metrics.
func (b *streamBench) scrape(ctx context.Context) (string, error) {
	c := http.Client{Transport: &http.Transport{DialContext: b.host.DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+benchMetrics+"/metrics", nil)
	if err != nil {
		return "", err
	}
	response, err := c.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

func (b *streamBench) metric(name string) float64 {
	b.t.Helper()
	text, err := b.scrape(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				b.t.Fatal(err)
			}
			return v
		}
	}
	b.t.Fatalf("the controller has no metric %s", name)
	return 0
}

// memory is of a process, in bytes.
type memory struct {
	inUse    float64 // heap that is reached at the last collection, and stacks
	resident float64
}

func (b *streamBench) controllerMemory() memory {
	return memory{
		inUse:    b.metric("go_memstats_heap_inuse_bytes") + b.metric("go_memstats_stack_inuse_bytes"),
		resident: resident(b.t, b.controller.Pid()) * 1e6,
	}
}

// fill brings the mesh to so many machines, of other orgs on other hosts, past the
// controller.
func (b *streamBench) fill(machines int) {
	t := b.t
	t.Helper()
	const perOrg, hosts = 1000, 20
	r, err := b.client.Get(t.Context(), "/weft/mesh")
	if err != nil || len(r.Kvs) != 1 {
		t.Fatalf("no mesh in etcd: %v", err)
	}
	var m mesh.Mesh
	if err := json.Unmarshal(r.Kvs[0].Value, &m); err != nil {
		t.Fatal(err)
	}
	var ops []clientv3.Op
	flush := func() {
		if _, err := b.client.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
		ops = ops[:0]
	}
	put := func(key string, v any) {
		ops = append(ops, clientv3.OpPut("/weft/"+key, string(b.encoded(v))))
		if len(ops) == 128 {
			flush()
		}
	}
	for ; b.filled < machines; b.filled++ {
		n, org := b.filled%perOrg, b.filled/perOrg
		name, at := fmt.Sprint("other-", org), ipam.Host{Region: 1, Number: uint32(100_000 + n%hosts)}
		host := fmt.Sprint("elsewhere-", n%hosts)
		if n == 0 {
			put("orgs/"+name, mesh.Org{Name: name, Network: uint64(40_000 + org), Created: m.Created})
		}
		if b.filled < hosts {
			put("hosts/"+host, mesh.Host{Name: host, Number: at.Number, Region: "fra", RegionNumber: 1, Key: mesh.Key{1, byte(n)}, TLSKey: host, Orgs: []string{mesh.AllOrgs}, Created: m.Created})
		}
		id := fmt.Sprint("m", n)
		put("machines/"+name+"/"+id, mesh.Machine{
			Org: name, ID: id, App: "web", Host: host, Endpoint: m.Plan.Endpoint(uint64(40_000+org), at, uint16(n/hosts+1)),
			State: mesh.StateStarted, Created: m.Created,
		})
	}
	flush()
	await(t, "the controller to know them", 2*time.Minute, func(ctx context.Context) error {
		if n := b.metric(`weft_store_objects{kind="machine"}`); n < float64(machines) {
			return fmt.Errorf("%.0f machines of %d", n, machines)
		}
		return nil
	})
	time.Sleep(time.Second)
}

// coldStart is how long it takes to know a mesh of 100,000 machines.
func (b *streamBench) coldStart() {
	t := b.t
	t.Helper()
	var took []time.Duration
	for range 3 {
		s, err := store.New(store.Config{Client: b.client})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		began := time.Now()
		go func() { defer close(ended); s.Run(ctx) }()
		select {
		case <-s.Ready():
		case <-time.After(time.Minute):
			t.Fatal("the mirror is not ready")
		}
		took = append(took, time.Since(began))
		if n := s.State().Machines.Len(); n < b.filled {
			t.Errorf("the mirror has %d machines of %d", n, b.filled)
		}
		cancel()
		<-ended
	}
	slices.Sort(took)
	figure("mirror_cold_start", percentile(took, 0.5), "ms", "")
}
