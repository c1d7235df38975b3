package controller

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/metrics"
	"github.com/weftmesh/weft/mesh/store"
)

const (
	// answerTimeout bounds a request that is not a stream, reading and writing.
	answerTimeout = 30 * time.Second
	// waitTimeout bounds how long the answer to a change waits until this
	// controller's own mirror has it.
	waitTimeout = 2 * time.Second
	// changeTimeout bounds a change, so that a caller learns soon that etcd does not
	// answer.
	changeTimeout = 5 * time.Second
	// ageAfter is the age of the mirror from which on answers say how old they are.
	ageAfter = 5 * time.Second
	// staleAfter is the age of the mirror from which on the controller no longer
	// calls itself ready.
	staleAfter = 30 * time.Second
)

// server answers requests. Its fields do not change after newServer, but for what
// says so itself.
type server struct {
	cfg        Config
	store      *store.Store
	ca         *enroll.CA
	roots      []*x509.Certificate
	deployment mesh.Deployment
	log        *slog.Logger

	api     http.Handler // the API
	private http.Handler // metrics and health, for a listener on loopback

	streams    streams
	hub        *hub
	requests   requests
	closing    context.Context // ends when streams are to end
	endStreams context.CancelFunc
	background sync.WaitGroup // what streams leave behind: presence that is given up
}

// newServer registers all routes. It fails if a route has no rule, or a rule no
// route.
func newServer(cfg Config, ca *enroll.CA, cas []*enroll.CA) (*server, error) {
	s := &server{
		cfg: cfg, store: cfg.Store, ca: ca, log: cfg.Log,
		deployment: mesh.Deployment{Controllers: cfg.Advertise},
		streams:    streams{byKey: map[string]*stream{}},
		requests:   requests{counts: map[requestKind]uint64{}},
	}
	s.closing, s.endStreams = context.WithCancel(context.Background())
	for _, c := range cas {
		s.deployment.Roots = append(s.deployment.Roots, c.PEM())
	}
	s.hub = newHub(storeSource{s.store}, s.deployment, s.log)
	var err error
	if s.roots, err = enroll.ParseRoots(s.deployment.Roots); err != nil {
		return nil, err
	}
	open, private := newRouter(s), newRouter(s)
	s.routes(open)
	private.handle("metrics", metrics.Handler(s.stats).ServeHTTP)
	private.handle("health", s.health)
	private.handle("ready", s.ready)
	if err := errors.Join(open.err, private.err, unused(open, private)); err != nil {
		return nil, err
	}
	s.api, s.private = open, private
	return s, nil
}

// router is a ServeMux that takes no route without a rule, and puts the rule in
// front of the handler. It is what huma registers its routes on, too.
type router struct {
	s         *server
	mux       *http.ServeMux
	huma      huma.API
	rules     map[string]rule // by id
	byPattern map[string]rule
	used      map[string]bool // ids
	err       error
}

func newRouter(s *server) *router {
	r := &router{s: s, mux: http.NewServeMux(), rules: map[string]rule{}, byPattern: map[string]rule{}, used: map[string]bool{}}
	for _, rule := range rules() {
		if _, twice := r.rules[rule.id]; twice {
			r.err = errors.Join(r.err, fmt.Errorf("two rules are called %s", rule.id))
		}
		r.rules[rule.id], r.byPattern[rule.pattern()] = rule, rule
	}
	config := huma.DefaultConfig("weft controller", s.cfg.Version)
	// No routes of huma's own: the description is served below, under its rule.
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.CreateHooks = nil // they would add a $schema field to every answer
	config.Transformers = []huma.Transformer{translate}
	r.huma = humago.New(r, config)
	return r
}

// HandleFunc registers a handler behind the rule of its pattern.
func (r *router) HandleFunc(pattern string, handler func(http.ResponseWriter, *http.Request)) {
	rule, ok := r.byPattern[pattern]
	switch {
	case !ok:
		r.err = errors.Join(r.err, fmt.Errorf("route %s has no rule", pattern))
	case r.used[rule.id]:
		r.err = errors.Join(r.err, fmt.Errorf("route %s is registered twice", pattern))
	default:
		r.used[rule.id] = true
		r.mux.HandleFunc(pattern, r.s.guard(rule, handler))
	}
}

// handle registers a plain handler as the route with the given id.
func (r *router) handle(id string, handler http.HandlerFunc) {
	rule, ok := r.rules[id]
	if !ok {
		r.err = errors.Join(r.err, fmt.Errorf("route %s has no rule", id))
		return
	}
	r.HandleFunc(rule.pattern(), handler)
}

// unused reports the rules whose route is on none of the routers.
func unused(routers ...*router) (err error) {
	for _, rule := range rules() {
		used := false
		for _, r := range routers {
			used = used || r.used[rule.id]
		}
		if !used {
			err = errors.Join(err, fmt.Errorf("rule %s has no route", rule.id))
		}
	}
	return err
}

func (r *router) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if _, pattern := r.mux.Handler(req); pattern == "" {
		writeRefusal(w, refuse(api.ErrNotFound, "GET /openapi.json lists what there is", "%s %s: no such route", req.Method, req.URL.Path))
		return
	}
	r.mux.ServeHTTP(w, req)
}

// guard puts a rule in front of a handler, which finds the caller in its context.
func (s *server) guard(r rule, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		s.requests.active.Add(1)
		defer func() {
			s.requests.active.Add(-1)
			s.requests.count(r.id, rec.status)
		}()
		if !r.stream {
			deadline := time.Now().Add(answerTimeout)
			rc := http.NewResponseController(w)
			rc.SetReadDeadline(deadline)
			rc.SetWriteDeadline(deadline)
		}
		var c caller
		st := s.store.State()
		if r.allow&anyone == 0 {
			var err error
			if c, err = s.identify(req, st); err != nil {
				writeRefusal(rec, s.refusal(r.id, err))
				return
			}
		}
		c.addr = remoteAddr(req)
		if c.expired {
			// The renewed certificate is shown on the next connection, so this one
			// must not be used again.
			w.Header().Set("Connection", "close")
		}
		if err := r.check(req, c, st); err != nil {
			writeRefusal(rec, s.refusal(r.id, err))
			return
		}
		ctx := withCaller(req.Context(), c)
		switch age := s.store.Age(); {
		case r.stream:
		case req.Method != http.MethodGet:
			bounded, cancel := context.WithTimeout(ctx, changeTimeout)
			defer cancel()
			ctx = bounded
		case age > ageAfter && age < math.MaxInt64:
			w.Header().Set("Age", strconv.Itoa(int(age/time.Second))) // RFC 9111 section 5.1
		}
		next(rec, req.WithContext(ctx))
	}
}

// recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// answer is what huma writes.
type answer[T any] struct{ Body T }

// none is an answer without a body.
type none struct{}

// route registers a huma handler as the route with the given id: its method, path
// and who may use it come from the rules.
func route[I, O any](r *router, id string, handler func(context.Context, caller, *I) (*O, error)) {
	rule, ok := r.rules[id]
	if !ok {
		r.err = errors.Join(r.err, fmt.Errorf("route %s has no rule", id))
		return
	}
	op := huma.Operation{OperationID: id, Method: rule.method, Path: rule.path, Summary: rule.does, MaxBodyBytes: 1 << 20}
	switch rule.method {
	case http.MethodPost:
		op.DefaultStatus = http.StatusCreated
		if strings.HasPrefix(rule.path, "/v1/nodes/self/") {
			op.DefaultStatus = 0 // nothing is created
		}
	case http.MethodDelete:
		op.DefaultStatus = http.StatusNoContent
	}
	op.Responses = map[string]*huma.Response{"default": r.refusalSchema()}
	if _, ok := any(new(I)).(scoped); ok != (rule.scope == inBody) {
		r.err = errors.Join(r.err, fmt.Errorf("route %s: its rule and its body do not agree on whether the body names the org", id))
	}
	huma.Register(r.huma, op, func(ctx context.Context, in *I) (*O, error) {
		c := callerOf(ctx)
		if body, ok := any(in).(scoped); ok {
			if err := rule.checkBody(c, body); err != nil {
				return nil, err
			}
		}
		out, err := handler(ctx, c, in)
		if err != nil {
			return nil, withHeaders(r.s.refusal(id, err))
		}
		return out, nil
	})
	if rule.lenient() {
		r.ignoreUnknown(op)
	}
}

// ignoreUnknown makes a request's body take fields that are not known, also in the
// objects that it holds.
func (r *router) ignoreUnknown(op huma.Operation) {
	item := r.huma.OpenAPI().Paths[op.Path]
	for _, registered := range []*huma.Operation{item.Post, item.Put, item.Patch} {
		if registered == nil || registered.OperationID != op.OperationID || registered.RequestBody == nil {
			continue
		}
		r.loosen(registered.RequestBody.Content["application/json"].Schema, map[*huma.Schema]bool{})
	}
}

func (r *router) loosen(schema *huma.Schema, seen map[*huma.Schema]bool) {
	if schema != nil && schema.Ref != "" {
		schema = r.huma.OpenAPI().Components.Schemas.SchemaFromRef(schema.Ref)
	}
	if schema == nil || seen[schema] {
		return
	}
	seen[schema] = true
	r.loosen(schema.Items, seen)
	if schema.Type != huma.TypeObject || schema.AdditionalProperties != false && schema.AdditionalProperties != nil {
		return // a map, or loose already
	}
	schema.AdditionalProperties = true
	for _, p := range schema.Properties {
		r.loosen(p, seen)
	}
}

func (r *router) refusalSchema() *huma.Response {
	schema := r.huma.OpenAPI().Components.Schemas.Schema(typeOf[api.Error](), true, "")
	return &huma.Response{Description: "Refused", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: schema}}}
}

// health answers as long as the process does.
func (s *server) health(w http.ResponseWriter, _ *http.Request) { writeText(w, "ok\n") }

// ready answers whether requests can be served: the mirror is complete and was
// known to be current a moment ago.
func (s *server) ready(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-s.closing.Done():
		writeRefusal(w, refuse(api.ErrUnavailable, "", "controller: it is being stopped"))
		return
	case <-s.store.Ready():
	default:
		writeRefusal(w, refuse(api.ErrUnavailable, "", "controller: it has not read the whole state yet"))
		return
	}
	age := s.store.Age()
	if age > staleAfter {
		writeRefusal(w, refuse(api.ErrUnavailable, "is etcd running?", "controller: it has not heard from etcd for %s", age.Round(time.Second)))
		return
	}
	if age > ageAfter {
		writeText(w, fmt.Sprintf("ready, but the state is %s old: etcd does not answer\n", age.Round(time.Second)))
		return
	}
	if raised := alarms(s.condition()); len(raised) > 0 {
		writeText(w, "ready, but etcd raises an alarm: "+strings.Join(raised, "; ")+"\n")
		return
	}
	writeText(w, "ready\n")
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write([]byte(text))
}

// openapi answers with the description of the API, made once.
func openapi(description *huma.OpenAPI) http.HandlerFunc {
	text := sync.OnceValues(func() ([]byte, error) { return json.Marshal(description) })
	return func(w http.ResponseWriter, _ *http.Request) {
		b, err := text()
		if err != nil {
			e, _ := refusalOf(err)
			writeRefusal(w, e)
			return
		}
		w.Header().Set("Content-Type", "application/openapi+json")
		w.Write(b)
	}
}

// settle waits until the mirror has a change, so that who made it can see it in
// the next answer. If that takes long, the change is made all the same.
func (s *server) settle(ctx context.Context, rev int64) {
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	if err := s.store.Wait(ctx, rev); err != nil {
		s.log.Debug("the mirror lags behind", "rev", rev, "err", err)
	}
}
