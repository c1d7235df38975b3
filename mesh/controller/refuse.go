package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/store"
)

// retryAfter is when to try again what the store could not answer, in seconds.
const retryAfter = "2"

// refuse returns a copy of kind that says what failed, on what and why.
func refuse(kind *api.Error, hint, format string, args ...any) *api.Error {
	return &api.Error{Status: kind.Status, Code: kind.Code, Message: fmt.Sprintf(format, args...), Advice: hint}
}

func notFound(what string) *api.Error { return refuse(api.ErrNotFound, "", "%s: not found", what) }

// refusalOf translates an error for the wire. known is false for one that nobody
// foresaw: its text stays here.
func refusalOf(err error) (e *api.Error, known bool) {
	if errors.As(err, &e) {
		return e, true
	}
	for _, m := range []struct {
		is   error
		kind *api.Error
		hint string
	}{
		{store.ErrUnsure, api.ErrUnavailable, "look whether it was done before you try again"},
		{context.DeadlineExceeded, api.ErrUnavailable, "try again in a moment"},
		{store.ErrUnavailable, api.ErrUnavailable, "try again in a moment"},
		{store.ErrToken, api.ErrToken, "make a new one with: weft token create"},
		{store.ErrInvalid, api.ErrInvalid, ""},
		{store.ErrExists, api.ErrExists, ""},
		{store.ErrNotFound, api.ErrNotFound, ""},
		{store.ErrConflict, api.ErrConflict, ""},
		{store.ErrFull, api.ErrFull, ""},
		{store.ErrLimit, api.ErrLimit, ""},
	} {
		if errors.Is(err, m.is) {
			hint := mesh.HintOf(err)
			if hint == "" {
				hint = m.hint
			}
			e := refuse(m.kind, hint, "%s", err)
			e.Unsure = m.is == store.ErrUnsure
			return e, true
		}
	}
	return &api.Error{Status: http.StatusInternalServerError, Code: "internal", Message: "the controller met an error of its own", Advice: "its log says more"}, false
}

// refusal is refusalOf for handlers: it logs what nobody foresaw.
func (s *server) refusal(route string, err error) *api.Error {
	e, known := refusalOf(err)
	if !known {
		s.log.Error("request failed", "route", route, "err", err)
	}
	return e
}

// writeRefusal answers a request that is not huma's.
func writeRefusal(w http.ResponseWriter, e *api.Error) {
	h := w.Header()
	h.Set("Content-Type", e.ContentType(""))
	h.Set("Cache-Control", "no-store")
	if e.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", retryAfter)
	}
	if e.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(e.Status)
	json.NewEncoder(w).Encode(e)
}

// withHeaders gives huma the headers that go with a refusal.
func withHeaders(e *api.Error) error {
	if e.Status != http.StatusServiceUnavailable {
		return e
	}
	return huma.ErrorWithHeaders(e, http.Header{"Retry-After": {retryAfter}})
}

// translate turns huma's own refusals (a body that does not parse, a field that is
// not known) into ours. The values that were sent are left out: they may be
// secrets.
func translate(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	e := &api.Error{Status: m.Status, Code: api.ErrInvalid.Code, Message: m.Detail}
	if m.Status >= 500 {
		e.Code = "internal"
	}
	var why []string
	for _, d := range m.Errors {
		if d == nil {
			continue
		}
		where, message := strings.TrimPrefix(strings.TrimPrefix(d.Location, "body"), "."), d.Message
		if message == "unexpected property" {
			message = "there is no such field"
		}
		if where != "" {
			message = where + ": " + message
		}
		why = append(why, message)
	}
	if len(why) > 0 {
		e.Message = strings.Join(why, "; ")
	}
	return e, nil
}
