package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/weftmesh/weft/mesh/api"
)

// refused is evidence that a write was refused: 503, when to try again, and why.
func (l *ledger) refused(why string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, r := range l.refusals {
			if r.status == http.StatusServiceUnavailable && r.retryAfter != "" && strings.Contains(r.detail, why) {
				return fmt.Sprintf("503, Retry-After %s: %s", r.retryAfter, r.detail), nil
			}
		}
		return "", fmt.Errorf("no write was refused with 503, Retry-After and %q; %d acknowledged, %d without an answer, refusals %+v",
			why, l.acks, l.noAnswer, l.refusals[:min(len(l.refusals), 5)])
	}
}

// end stops the writers and compares what was said with what there is.
func (l *ledger) end(r *row) {
	r.Helper()
	l.stop()
	r.during("the controllers to have what was acknowledged, and nothing twice", convergeWithin, func(ctx context.Context) error {
		var clients []api.ClientInfo
		var machines []api.MachineInfo
		err := errors.Join(l.do(ctx, http.MethodGet, "/v1/orgs/acme/clients", nil, &clients), l.do(ctx, http.MethodGet, "/v1/orgs/acme/machines", nil, &machines))
		if err != nil {
			return err
		}
		return errors.Join(l.judge(clients, machines)...)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.refusals {
		if x.status != http.StatusServiceUnavailable {
			r.Errorf("a write was refused with %d: %s", x.status, x.detail)
			break
		}
		if x.retryAfter == "" {
			r.Errorf("a write was refused with 503 and without Retry-After: %s", x.detail)
			break
		}
	}
}

// judge lists what is wrong with what there is.
func (l *ledger) judge(clients []api.ClientInfo, machines []api.MachineInfo) (errs []error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	there := map[string]netip.Addr{}
	for _, c := range clients {
		there[c.Name] = c.Address
		if l.entries[c.Name] == nil {
			errs = append(errs, fmt.Errorf("client %s was never asked for", c.Name))
		}
		l.own(c.Address, c.Name)
	}
	for _, m := range machines {
		l.own(m.Address, "machine "+m.ID)
	}
	for name, e := range l.entries {
		addr, found := there[name]
		switch {
		case e.created == acknowledged && e.removed == notTried && !found:
			errs = append(errs, fmt.Errorf("client %s was acknowledged and is not there", name))
		case e.removed == acknowledged && found:
			errs = append(errs, fmt.Errorf("client %s was removed and is there", name))
		case e.created == acknowledged && found && addr != e.addr:
			errs = append(errs, fmt.Errorf("client %s was given %s and has %s", name, e.addr, addr))
		}
	}
	for _, c := range l.complaint {
		errs = append(errs, errors.New(c))
	}
	return errs
}

// half lists clients of which one part is there and another is not: the name without
// the key, or the key without the name. It looks at those that were asked for without
// an answer: whoever asks for their key must be refused exactly if they are there. One
// for which there is no answer now, either, says nothing.
func (l *ledger) half(ctx context.Context) (errs []error) {
	l.mu.Lock()
	keys := map[string]string{}
	for name, e := range l.entries {
		if e.created == unknown || e.removed == unknown {
			keys[name] = e.key
		}
	}
	l.mu.Unlock()
	for name, key := range keys {
		look := func() error { return l.do(ctx, http.MethodGet, "/v1/orgs/acme/clients/"+name, nil, nil) }
		err := look()
		there := err == nil
		if err != nil && !errors.Is(err, api.ErrNotFound) {
			return append(errs, err)
		}
		other := "x" + name
		l.mu.Lock()
		l.entries[other] = &entry{key: key, created: unknown}
		l.mu.Unlock()
		switch err := l.do(ctx, http.MethodPost, "/v1/orgs/acme/clients", api.CreateClient{Name: other, Key: key}, nil); {
		case there && !errors.Is(err, api.ErrExists):
			errs = append(errs, fmt.Errorf("client %s is there, and its key is not: %w", name, cmpErr(err, "another could have it")))
		case !there && errors.Is(err, api.ErrExists) && look() == nil: // carried out between the two
		case !there && err != nil && !errors.Is(err, api.ErrUnavailable):
			errs = append(errs, fmt.Errorf("client %s is not there, and its key is: %w", name, err))
		}
	}
	return errs
}

func cmpErr(err error, otherwise string) error {
	if err == nil {
		return errors.New(otherwise)
	}
	return err
}

func (l *ledger) summary() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d writes acknowledged, %d refused, %d without an answer", l.acks, len(l.refusals), l.noAnswer)
}
