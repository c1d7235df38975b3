package dns

import "sync"

// pending counts what goes on. Unlike a sync.WaitGroup's, its wait may run while
// more is added.
type pending struct {
	mu   sync.Mutex // guards what follows
	n    int
	none *sync.Cond // made by the first wait
}

func (p *pending) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n += n; p.n == 0 && p.none != nil {
		p.none.Broadcast()
	}
}

func (p *pending) wait() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.none == nil {
		p.none = sync.NewCond(&p.mu)
	}
	for p.n > 0 {
		p.none.Wait()
	}
}
