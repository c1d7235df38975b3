package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/store"
)

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
