package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/weftmesh/weft/e2e/history"
	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// Three controllers on three members of etcd, real programs, that are killed, paused
// and cut off, while clients do all that allocates or spends. Whatever the clients
// were told can be told of one state. It lasts WEFT_SECONDS,
// in rounds.
func TestHistoryOfPrograms(t *testing.T) {
	need(t, "ip")
	t.Parallel()
	lasts := 20 * time.Second
	if text := os.Getenv("WEFT_SECONDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("WEFT_SECONDS=%q: want a number of seconds", text)
		}
		lasts = time.Duration(n) * time.Second
	}
	for i, d := range history.Rounds(lasts, 30*time.Second) {
		t.Run(fmt.Sprint("round ", i+1), func(t *testing.T) { historyOfPrograms(t, uint64(i), d) })
	}
}

func historyOfPrograms(t *testing.T, round uint64, lasts time.Duration) {
	s := newSoak(t, round)
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	var busy sync.WaitGroup
	for i := range 6 {
		c := &soakClient{soak: s, n: i + 1, r: rand.New(rand.NewPCG(s.seed, uint64(i+1)))}
		busy.Go(func() {
			for ctx.Err() == nil {
				c.step(ctx)
			}
		})
	}
	s.harm(ctx)
	busy.Wait()
	s.judge(max(30*time.Second, lasts))
}

// soak is the mesh and what was recorded of it.
type soak struct {
	t    *testing.T
	seed uint64
	w    *world.World
	etcd *world.Etcd
	lab  *lab.Lab
	rec  *history.Recorder
	did  map[string]int

	admins []*api.Client // of the operator, by controller
	hosts  map[string][]*api.Client

	mu       sync.Mutex // guards what follows
	names    int
	machines []string // org/id
	token    soakToken
}

// soakToken is a token of hosts that is to be spent.
type soakToken struct{ id, text string }

func newSoak(t *testing.T, round uint64) *soak {
	t.Helper()
	s := &soak{t: t, did: map[string]int{}, rec: history.NewRecorder(time.Now), hosts: map[string][]*api.Client{}}
	s.seed = rand.Uint64N(1_000_000)
	if text := os.Getenv("WEFT_SEED"); text != "" {
		var err error
		if s.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("WEFT_SEED: %v", err)
		}
	}
	s.seed += round
	t.Logf("seed %d (WEFT_SEED=%d repeats what is drawn, though not who is faster)", s.seed, s.seed)
	s.lab = newLab(t)
	s.etcd = newEtcd(t, s.lab)
	var err error
	if s.w, err = world.New(t.Context(), world.Config{Lab: s.lab, Bin: bin(t), Etcd: s.etcd, Controllers: 3}); err != nil {
		t.Fatal(err)
	}
	weft(t, s.w, "region", "create", "fra")
	text, err := os.ReadFile(filepath.Join(s.w.Controllers[0].DataDir, "operator.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file enroll.OperatorFile
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	from, err := s.lab.Host("clients", lab.HostConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.w.Controllers {
		s.admins = append(s.admins, s.client(from, c.URL, file.Pin, file.Credential, nil))
	}
	first := &soakClient{soak: s, r: rand.New(rand.NewPCG(s.seed, 0))}
	for _, org := range []string{"a", "ab"} {
		first.createOrg(t.Context(), org)
	}
	for _, name := range []string{"h0", "h1"} {
		first.createToken(t.Context())
		cert := first.join(t.Context(), name, s.token)
		if cert == nil {
			t.Fatalf("host %s did not join", name)
		}
		for _, c := range s.w.Controllers {
			s.hosts[name] = append(s.hosts[name], s.client(from, c.URL, file.Pin, "", cert))
		}
	}
	return s
}

func (s *soak) client(from *lab.Host, url, pin, bearer string, cert *tls.Certificate) *api.Client {
	cfg := api.Config{Servers: []string{url}, Bearer: bearer, Timeout: 4 * time.Second, Dial: from.DialContext,
		TLS: enroll.ClientTLS(enroll.ClientConfig{Pin: pin, Certificate: func() *tls.Certificate { return cert }})}
	c, err := api.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// harm does one bad thing after the other to controllers and members until ctx
// ends, and then makes all of it good.
func (s *soak) harm(ctx context.Context) {
	r := rand.New(rand.NewPCG(s.seed, 99))
	sleep := func(least, most time.Duration) {
		timer := time.NewTimer(least + rand.N(most-least))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		sleep(300*time.Millisecond, time.Second)
		i := r.IntN(3)
		controller, member := s.w.Controllers[i], s.etcd.Members[i]
		host, process, start := controller.Host, controller.Process, func() error { return s.w.Run(s.t.Context(), controller) }
		what := "a controller"
		if r.IntN(2) == 0 {
			host, process, start, what = member.Host, member.Process, member.Start, "a member"
		}
		var errs []error
		switch r.IntN(3) {
		case 0:
			s.did[what+" killed"]++
			errs = append(errs, process.Kill())
			sleep(100*time.Millisecond, time.Second)
			errs = append(errs, start())
		case 1:
			s.did[what+" paused"]++
			errs = append(errs, process.Pause())
			sleep(300*time.Millisecond, 3*time.Second)
			errs = append(errs, process.Continue())
		case 2:
			s.did[what+" cut off"]++
			errs = append(errs, s.lab.Switch().CutHost(host.Name()))
			sleep(300*time.Millisecond, 3*time.Second)
			errs = append(errs, s.lab.Switch().RestoreHost(host.Name()))
		}
		if err := errors.Join(errs...); err != nil {
			s.t.Error(err)
			return
		}
	}
}

// judge reads everything from every controller once more, and judges.
func (s *soak) judge(patience time.Duration) {
	ctx := s.t.Context()
	if err := s.etcd.Await(ctx); err != nil {
		s.t.Fatal(err)
	}
	for i, c := range s.w.Controllers {
		if err := s.w.AwaitReady(ctx, c); err != nil {
			s.t.Fatal(err)
		}
		last := &soakClient{soak: s, n: 100 + i, r: rand.New(rand.NewPCG(s.seed, 100)), only: &i}
		// A change of its own brings its mirror to the present.
		deadline := time.Now().Add(30 * time.Second)
		for last.createOrg(ctx, fmt.Sprint("last", i)) != history.OK {
			if time.Now().After(deadline) {
				s.t.Fatalf("%s takes no changes", c.Name())
			}
		}
		for _, what := range soakLists {
			last.read(ctx, what, true)
		}
	}
	ops := s.rec.Operations()
	tally := map[string]int{}
	for _, o := range ops {
		tally[string(o.Action)+" "+string(o.Result)]++
	}
	s.t.Logf("%d operations: %v", len(ops), tally)
	s.t.Logf("what went wrong meanwhile: %v", s.did)
	for _, what := range []string{"create ok", "remove ok", "create unknown", "create token refused", "read ok"} {
		if tally[what] == 0 {
			s.t.Errorf("there was no %q: this run proves little", what)
		}
	}
	rules := history.Rules{SlotRest: time.Hour, HostRest: 30 * 24 * time.Hour, AddressRest: 30 * 24 * time.Hour, Settles: time.Second, Patience: patience}
	for _, f := range history.Judge(ops, rules) {
		s.t.Error(f)
	}
}
