package history

import (
	"math/rand/v2"
	"sync"

	"github.com/weftmesh/weft/mesh"
)

// rush has every controller do, at the same moment, what only one of them may do, or
// what each has to do apart from the others: there is no better time for a mistake.
func (w *worker) rush() {
	switch w.r.IntN(6) {
	case 0: // one key
		as := w.fresh("rush-key")
		names := w.each(func(w *worker) string {
			name := w.fresh("r")
			w.createClient("a", name, as)
			return name
		})
		for _, name := range names {
			w.removeClient("a", name)
		}
	case 1: // one use of a token
		token := w.createToken(mesh.KindHost, 1, 24)
		for _, name := range w.each(func(w *worker) string {
			name := w.fresh("r")
			w.joinHost(name, token)
			return name
		}) {
			w.removeHost(name)
		}
	case 2: // one place in an org that may have few
		if name := w.take(w.r, &w.few, false); name != "" {
			w.removeMachine(name)
		}
		w.each(func(w *worker) string { w.createMachine("few", w.fresh("m"), "h0", false); return "" })
	case 3: // one slot after the other
		w.each(func(w *worker) string { w.createMachine("ab", w.fresh("m"), "h1", false); return "" })
	case 4: // an org that goes, and what comes into it
		org := w.fresh("r")
		w.createOrg(org)
		first := true
		var mu sync.Mutex
		w.each(func(w *worker) string {
			mu.Lock()
			removes := first
			first = false
			mu.Unlock()
			if removes {
				w.removeOrg(org)
			} else {
				w.createMachine(org, w.fresh("m"), "h0", false)
			}
			return ""
		})
	case 5: // one network each
		for _, org := range w.each(func(w *worker) string {
			org := w.fresh("r")
			w.createOrg(org)
			return org
		}) {
			w.removeOrg(org)
		}
	}
}

// each does the same at every controller at once.
func (w *worker) each(do func(w *worker) string) []string {
	names := make([]string, len(w.b.controllers))
	var all sync.WaitGroup
	for i := range w.b.controllers {
		one := &worker{crowd: w.crowd, n: w.n*10 + i, r: rand.New(rand.NewPCG(w.r.Uint64(), 0)), only: w.b.controllers[i]}
		all.Go(func() { names[i] = do(one) })
	}
	all.Wait()
	return names
}
