// Package history judges what the clients of a mesh's state were told. They record
// every operation with the time of its call and of its answer; afterwards the
// judge asks whether there is an order of all of them, in keeping with those
// times, in which nothing was given twice, nothing that was acknowledged was lost,
// and nobody was shown what was no longer so.
//
// It is pure. How operations come about, and what goes wrong meanwhile, is the
// business of those who record.
package history

import (
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"
)

// Action is what an operation was to do.
type Action string

// Actions. What a read saw is in Operation.State.
const (
	Create Action = "create"
	Remove Action = "remove"
	Move   Action = "move" // to another host, with the next generation
	Read   Action = "read"
)

// Result is how an operation ended.
type Result string

// Results. Unknown is a timeout or a connection that was cut: it may have
// happened, may happen yet, or never will.
const (
	OK      Result = "ok"
	Exists  Result = "exists"        // refused: the object is there already
	Missing Result = "missing"       // refused: it is not there
	Gone    Result = "gone"          // it is not there any more, by this removal or by another
	Token   Result = "token refused" // spent, expired, removed, or never was
	Refused Result = "refused"       // for any other reason, and nothing was changed
	Unknown Result = "unknown"
)

// Object is what somebody was told about an object. What a kind does not have is
// zero.
type Object struct {
	Number     uint64 `json:"number,omitempty"`   // an org's network, a host's number
	Endpoint   string `json:"endpoint,omitempty"` // of a machine or a client
	Host       string `json:"host,omitempty"`     // of a machine
	Generation uint64 `json:"generation,omitempty"`
	Uses       int    `json:"uses,omitempty"` // that a token has left
	Ending     bool   `json:"ending,omitempty"`
}

// Operation is one operation, as the client saw it. Keys are those of the store:
// "orgs/acme", "hosts/h1", "machines/acme/m1", "clients/acme/c1", "tokens/t1".
type Operation struct {
	Client int           `json:"client"`
	Action Action        `json:"action"`
	Key    string        `json:"key,omitempty"`
	Result Result        `json:"result"`
	Call   time.Duration `json:"call"` // since the history began
	Return time.Duration `json:"return"`

	// What was asked.
	Node    string    `json:"node,omitempty"`    // the WireGuard key of a host or client that is created; another one for each attempt that is not a repetition
	Token   string    `json:"token,omitempty"`   // key of the token that is spent
	Uses    int       `json:"uses,omitempty"`    // of a token that is created
	Expires time.Time `json:"expires,omitzero"`  // likewise
	Keeps   bool      `json:"keeps,omitempty"`   // a stable machine or a client: its name keeps its endpoint
	Told    []string  `json:"told,omitempty"`    // further objects that it needs, besides the org and the host in what it was answered
	Wait    int64     `json:"wait,omitempty"`    // of a read: the revision that it waited for
	Server  string    `json:"server,omitempty"`  // of a read without a revision: whom it asked
	Current bool      `json:"current,omitempty"` // of a read: made when everything had come to rest

	// What was answered. Revision is the state's that was read, or the change's. A
	// change that is one transaction is Exact: it is of that revision; others have
	// happened by then.
	Object   Object            `json:"object,omitzero"`
	State    map[string]Object `json:"state,omitempty"`
	Revision int64             `json:"revision,omitempty"`
	Exact    bool              `json:"exact,omitempty"`

	// The surroundings. Floor is the highest revision that anybody had been told
	// before the call; Before and After are the store's clock at call and return.
	Floor  int64     `json:"floor,omitempty"`
	Before time.Time `json:"before,omitzero"`
	After  time.Time `json:"after,omitzero"`
}

func (o Operation) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%12s..%-12s client %d: %s %s", o.Call.Round(time.Microsecond), o.Return.Round(time.Microsecond), o.Client, o.Action, o.Key)
	for _, part := range []struct{ name, value string }{{"by", o.Token}, {"node", o.Node}, {"at", o.Server}} {
		if part.value != "" {
			fmt.Fprintf(&s, " %s %s", part.name, part.value)
		}
	}
	fmt.Fprintf(&s, " -> %s", o.Result)
	if o.Object != (Object{}) {
		fmt.Fprintf(&s, " %+v", o.Object)
	}
	if o.Revision != 0 {
		fmt.Fprintf(&s, " rev %d (floor %d)", o.Revision, o.Floor)
	}
	if !o.Before.IsZero() {
		fmt.Fprintf(&s, " clock %s..%s", o.Before.Format(time.TimeOnly), o.After.Format(time.TimeOnly))
	}
	return s.String()
}

// Recorder collects operations. Its methods may be called concurrently.
type Recorder struct {
	now   func() time.Time // the store's clock
	start time.Time

	mu    sync.Mutex // guards what follows
	ops   []Operation
	floor int64
}

// NewRecorder returns a Recorder whose history begins now. clock is the one that
// the store goes by.
func NewRecorder(clock func() time.Time) *Recorder {
	return &Recorder{now: clock, start: time.Now()}
}

// Floor is the highest revision that anybody was told.
func (r *Recorder) Floor() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.floor
}

// Do records one operation: op says what is asked, run asks it and fills in what
// was answered.
func (r *Recorder) Do(op Operation, run func(op *Operation)) Operation {
	op.Floor, op.Before, op.Call = r.Floor(), r.now(), time.Since(r.start)
	run(&op)
	op.Return, op.After = time.Since(r.start), r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if op.Result == OK {
		r.floor = max(r.floor, op.Revision)
	}
	r.ops = append(r.ops, op)
	return op
}

// Len is how many operations there are.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ops)
}

// Operations returns what was recorded, by the time of the call.
func (r *Recorder) Operations() []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := append([]Operation(nil), r.ops...)
	sort.SliceStable(ops, func(i, j int) bool { return ops[i].Call < ops[j].Call })
	return ops
}

// removes says whether o has removed its object, or may have.
func (o Operation) removes() bool {
	return o.Action == Remove && (o.Result == OK || o.Result == Gone || o.Result == Unknown)
}

// kind is the first part of a key.
func kind(key string) string {
	k, _, _ := strings.Cut(key, "/")
	return k
}

// orgOf is the key of the org that a machine or a client is in.
func orgOf(key string) string {
	if k := kind(key); k != "machines" && k != "clients" {
		return ""
	}
	_, rest, _ := strings.Cut(key, "/")
	org, _, _ := strings.Cut(rest, "/")
	return "orgs/" + org
}
