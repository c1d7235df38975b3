package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// ledger makes and removes clients of acme while faults happen, and writes down what
// the controllers said. Afterwards it compares that with what there is.
type ledger struct {
	w      *world.World
	http   *http.Client
	bearer string
	good   atomic.Int32 // which controller answered last

	mu        sync.Mutex // guards what follows
	entries   map[string]*entry
	owners    map[netip.Addr]string // to whom each address was ever given
	next      int
	acks      int
	refusals  []refusal
	noAnswer  int
	complaint []string // addresses that were given twice
	stop      func()
}

// entry is what is known of a client. A request without an answer may have been
// carried out or not.
type entry struct {
	key              string
	addr             netip.Addr
	created, removed outcome
}

type outcome int

const (
	notTried outcome = iota
	unknown
	acknowledged
)

// refusal is an answer that a write was not done.
type refusal struct {
	status     int
	retryAfter string
	detail     string
}

const (
	writers   = 2
	aliveMost = 40 // clients, besides the probes
)

func newLedger(t *testing.T, w *world.World) *ledger {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.Lab().Dir(), "operator", "contexts", "lab.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file enroll.OperatorFile
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	l := &ledger{w: w, bearer: file.Credential, entries: map[string]*entry{}, owners: map[netip.Addr]string{}, stop: func() {}}
	l.http = &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{
		TLSClientConfig: enroll.ClientTLS(enroll.ClientConfig{Pin: file.Pin}),
		DialContext:     w.Controller.DialContext, TLSHandshakeTimeout: 3 * time.Second,
		MaxIdleConnsPerHost: writers + 1,
	}}
	t.Cleanup(l.http.CloseIdleConnections)
	return l
}

// begin starts the writers of a row; end stops them and judges.
func (l *ledger) begin(t *testing.T) {
	l.mu.Lock()
	l.acks, l.refusals, l.noAnswer = 0, nil, 0
	l.mu.Unlock()
	l.stop = l.more(writers, 50*time.Millisecond)
	t.Cleanup(func() { l.stop() })
}

// more starts writers that rest between two writes.
func (l *ledger) more(writers int, rest time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for range writers {
		running.Go(func() { l.write(ctx, rest) })
	}
	return sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
}

func (l *ledger) write(ctx context.Context, rest time.Duration) {
	for ctx.Err() == nil {
		oldest, name := l.choose()
		var err error
		if oldest != "" {
			err = l.remove(ctx, oldest)
		} else {
			err = l.create(ctx, name)
		}
		pause := rest
		if err != nil {
			pause = max(rest, 100*time.Millisecond)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// choose returns a client to remove, if there are enough, or else a new name.
func (l *ledger) choose() (oldest, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	alive := 0
	for n, e := range l.entries {
		if strings.HasPrefix(n, "c") && e.created == acknowledged && e.removed == notTried {
			alive++
			if oldest == "" || n < oldest {
				oldest = n
			}
		}
	}
	if alive >= aliveMost {
		return oldest, ""
	}
	l.next++
	return "", fmt.Sprintf("c%06d", l.next)
}

// create makes a client and writes down what came of it. An error means that it was
// not acknowledged.
func (l *ledger) create(ctx context.Context, name string) error {
	l.mu.Lock()
	e := l.entries[name]
	if e == nil {
		e = &entry{key: newKey()}
		l.entries[name] = e
	}
	if e.created == acknowledged {
		l.mu.Unlock()
		return nil
	}
	first := e.created == notTried
	e.created = unknown
	l.mu.Unlock()
	var made api.CreatedClient
	err := l.do(ctx, http.MethodPost, "/v1/orgs/acme/clients", api.CreateClient{Name: name, Key: e.key}, &made)
	if !first && errors.Is(err, api.ErrExists) {
		// A try before this one was carried out and not answered.
		var there api.ClientInfo
		if err = l.do(ctx, http.MethodGet, "/v1/orgs/acme/clients/"+name, nil, &there); err == nil {
			made.Client, made.Address = there.Client, there.Address
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if first && errors.Is(err, api.ErrExists) {
		l.complaint = append(l.complaint, fmt.Sprintf("client %s is new, and refused: %v", name, err))
	}
	if err != nil {
		return err
	}
	e.created, e.addr = acknowledged, made.Address
	l.acks++
	l.own(made.Address, name)
	return nil
}

// own notes to whom an address was given. Callers hold mu.
func (l *ledger) own(addr netip.Addr, name string) {
	if owner, given := l.owners[addr]; given && owner != name {
		l.complaint = append(l.complaint, fmt.Sprintf("%s was given to %s and to %s", addr, owner, name))
	}
	l.owners[addr] = name
}

func (l *ledger) remove(ctx context.Context, name string) error {
	l.mu.Lock()
	e := l.entries[name]
	if e.removed != notTried {
		l.mu.Unlock()
		return nil
	}
	e.removed = unknown
	l.mu.Unlock()
	err := l.do(ctx, http.MethodDelete, "/v1/orgs/acme/clients/"+name, nil, nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(err, api.ErrNotFound) {
		l.complaint = append(l.complaint, fmt.Sprintf("client %s was acknowledged, and cannot be removed: %v", name, err))
	}
	if err != nil {
		return err
	}
	e.removed = acknowledged
	l.acks++
	return nil
}

func (l *ledger) address(name string) netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[name].addr
}

// do sends a request to the controllers, the one that answered last in front, until one
// does it or refuses it. After one that left it open whether it was done, a refusal of the next
// because it is done says nothing.
func (l *ledger) do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	var errs []error
	urls := l.w.URLs()
	first := int(l.good.Load())
	for i := range urls {
		at := (first + i) % len(urls)
		server := urls[at]
		err := l.request(ctx, method, server+path, body, out, len(errs) > 0)
		var refused *api.Error
		switch final := errors.As(err, &refused) && refused.Status != http.StatusServiceUnavailable; {
		case err == nil, final && (len(errs) == 0 || method == http.MethodGet):
			l.good.Store(int32(at))
			return err
		case !final:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// request is one try. again says that one before may have been carried out: what it
// has removed is not there any more.
func (l *ledger) request(ctx context.Context, method, url string, body []byte, out any, again bool) error {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+l.bearer)
	r.Header.Set("Content-Type", "application/json")
	answer, err := l.http.Do(r)
	if err != nil {
		if ctx.Err() == nil {
			l.mu.Lock()
			l.noAnswer++
			l.mu.Unlock()
		}
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode >= 300 {
		refused := &api.Error{Status: answer.StatusCode, Message: string(text)}
		_ = json.Unmarshal(text, refused) // or it is the text as it is
		if done := again && refused.Status == http.StatusNotFound; method != http.MethodGet && refused.Status != http.StatusConflict && !done {
			l.mu.Lock()
			l.refusals = append(l.refusals, refusal{answer.StatusCode, answer.Header.Get("Retry-After"), refused.Message})
			l.mu.Unlock()
		}
		return refused
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// acknowledges is an error until so many more writes are acknowledged.
func (l *ledger) acknowledges(more int) func(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := l.acks + more
	return func(context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.acks < want {
			return fmt.Errorf("%d writes are to be acknowledged still", want-l.acks)
		}
		return nil
	}
}

func newKey() string {
	var key mesh.Key
	rand.Read(key[:])
	return base64.StdEncoding.EncodeToString(key[:])
}
