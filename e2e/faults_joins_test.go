package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh/api"
)

// joins enrols clients with one token, over and over.
type joins struct {
	l     *ledger
	uses  int
	token api.CreatedToken
	stop  func()

	mu   sync.Mutex // guards what follows
	keys map[string]string
	acks map[string]bool
	last error // of the last try that was not acknowledged
}

func newJoins(r *row, uses int) *joins {
	j := &joins{l: r.ledger, uses: uses, keys: map[string]string{}, acks: map[string]bool{}}
	r.must(j.l.do(r.Context(), http.MethodPost, "/v1/tokens", api.CreateToken{Kind: "client", Org: "acme", Uses: uses, TTL: "1h"}, &j.token))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { j.run(ctx) })
	j.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	return j
}

func (j *joins) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("e%06d", n)
		err := j.enrol(ctx, name, newKey())
		pause := 30 * time.Millisecond
		if err != nil {
			pause = 100 * time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

func (j *joins) enrol(ctx context.Context, name, key string) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tlsKey, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return err
	}
	j.mu.Lock()
	j.keys[name] = key
	j.mu.Unlock()
	j.l.mu.Lock()
	j.l.entries[name] = &entry{key: key, created: unknown}
	j.l.mu.Unlock()
	err = j.l.do(ctx, http.MethodPost, "/v1/enroll", api.EnrollRequest{Token: j.token.Token, Name: name, Key: key, TLSKey: tlsKey}, nil)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		j.acks[name] = true
	} else {
		j.last = err
	}
	return err
}

func (j *joins) acknowledges(more int) func(context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	want := len(j.acks) + more
	return func(context.Context) error {
		j.mu.Lock()
		defer j.mu.Unlock()
		if len(j.acks) < want {
			return fmt.Errorf("%d are to be enrolled still; the last failure is %w", want-len(j.acks), cmpErr(j.last, "none"))
		}
		return nil
	}
}

// judge compares the clients that there are with the uses that the token has lost:
// spending it and making the client are one change.
func (j *joins) judge(ctx context.Context) (errs []error) {
	var clients []api.ClientInfo
	var tokens []api.Token
	err := errors.Join(j.l.do(ctx, http.MethodGet, "/v1/orgs/acme/clients", nil, &clients), j.l.do(ctx, http.MethodGet, "/v1/tokens", nil, &tokens))
	if err != nil {
		return []error{err}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	there := map[string]bool{}
	for _, c := range clients {
		if strings.HasPrefix(c.Name, "e") {
			there[c.Name] = true
		}
	}
	for name := range j.acks {
		if !there[name] {
			errs = append(errs, fmt.Errorf("client %s was enrolled and is not there", name))
		}
	}
	for _, t := range tokens {
		if t.ID == j.token.ID && j.uses-t.Uses != len(there) {
			errs = append(errs, fmt.Errorf("the token was used %d times, for %d clients", j.uses-t.Uses, len(there)))
		}
	}
	return errs
}

func (j *joins) summary() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return fmt.Sprintf("%d enrolments acknowledged of %d tried", len(j.acks), len(j.keys))
}
