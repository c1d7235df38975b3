package history

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// wire is the way of one controller to etcd. Requests on it are lost, answers are
// lost, both come late, and it is cut.
type wire struct {
	mu       sync.Mutex // guards what follows
	rand     *rand.Rand
	lose     float64       // share of requests that are not carried out, and of answers that do not arrive
	late     time.Duration // at most
	cut      bool
	opened   chan struct{} // closed while it is not cut
	cuts     context.Context
	cutNow   context.CancelFunc
	lost     int
	unsolved int // answers that were lost
}

func newWire(seed uint64) *wire {
	w := &wire{rand: rand.New(rand.NewPCG(seed, 1)), opened: make(chan struct{})}
	close(w.opened)
	w.cuts, w.cutNow = context.WithCancel(context.Background())
	return w
}

// dial makes a client of the etcd at a socket.
func (w *wire) dial(socket string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{"unix://" + socket}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithChainUnaryInterceptor(w.unary), grpc.WithChainStreamInterceptor(w.stream),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 100 * time.Millisecond}),
		},
	})
}

// set changes what happens on the wire.
func (w *wire) set(lose float64, late time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lose, w.late = lose, late
}

// partition cuts the wire, or joins it again.
func (w *wire) partition(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cut == w.cut {
		return
	}
	if w.cut = cut; cut {
		w.opened = make(chan struct{})
		w.cutNow()
		return
	}
	w.cuts, w.cutNow = context.WithCancel(context.Background())
	close(w.opened)
}

// fate draws what happens to a request and to its answer.
func (w *wire) fate() (cut, request, answer bool, late time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	request = w.rand.Float64() < w.lose
	answer = !request && w.rand.Float64() < w.lose
	if w.late > 0 {
		late = rand.N(w.late)
	}
	if answer {
		w.unsolved++
	}
	if request {
		w.lost++
	}
	return w.cut, request, answer, late
}

func (w *wire) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	cut, request, answer, late := w.fate()
	if cut || request {
		return status.Error(codes.Unavailable, "the request is lost")
	}
	if late > 0 {
		timer := time.NewTimer(late)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	if err := call(ctx, method, req, reply, cc, opts...); err != nil {
		return err
	}
	if answer {
		return status.Error(codes.Unavailable, "the answer is lost")
	}
	return nil
}

func (w *wire) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	w.mu.Lock()
	opened := w.opened
	w.mu.Unlock()
	select {
	case <-opened:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	w.mu.Lock()
	cuts := w.cuts
	w.mu.Unlock()
	inner, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(cuts, cancel)
	s, err := open(inner, desc, cc, method, opts...)
	if err != nil {
		stop()
		cancel()
		return nil, err
	}
	return &cutStream{ClientStream: s, outer: ctx, end: func() { stop(); cancel() }}, nil
}

// cutStream is a stream that ends with its wire, as one does whose connection breaks.
type cutStream struct {
	grpc.ClientStream
	outer context.Context
	end   func()
}

func (s *cutStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		return nil
	}
	s.end()
	if s.outer.Err() == nil {
		return status.Error(codes.Unavailable, "the stream is cut")
	}
	return err
}
