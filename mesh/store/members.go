package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// member is a member of the cluster as this process sees it. The probes alone
// change it.
//
//	well -- leftAfter probes in a row fail --> left: no requests, connections cut
//	     <------- one probe succeeds ---------
type member struct {
	endpoint string
	client   *clientv3.Client // for the probes alone, to this member alone
	well     bool
	met      bool // it has answered once: until then Await does the talking
	failed   int  // probes in a row

	condition atomic.Pointer[Condition] // nil: it has never answered
}

const leftAfter = 2 // failed probes

// probe looks at the members until ctx ends.
func (cl *Cluster) probe(ctx context.Context) {
	tick := time.NewTicker(cl.config.ProbeEvery)
	defer tick.Stop()
	for {
		cl.judge(cl.look(ctx))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// look asks every member, at once, whether it is of use. The answers are in the
// order of the members.
func (cl *Cluster) look(ctx context.Context) []error {
	out := make([]error, len(cl.members))
	var all sync.WaitGroup
	for i, m := range cl.members {
		all.Go(func() { out[i] = m.look(ctx, 2*cl.config.ProbeEvery) })
	}
	all.Wait()
	return out
}

// look asks the member whether it has a leader: one that has none cannot answer
// anything but this. One that takes longer than timeout is of no use.
func (m *member) look(ctx context.Context, timeout time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	status, err := pb.NewMaintenanceClient(m.client.ActiveConnection()).Status(bounded, &pb.StatusRequest{})
	switch {
	case err != nil:
		return err
	case status.Leader == 0:
		return errNoLeader
	}
	m.condition.Store(conditionOf(m.endpoint, (*pb.StatusResponse)(status)))
	return nil
}

var errNoLeader = errors.New("it has no leader: most of the members are gone, or it cannot reach them")

// judge decides which members are asked from now on. While none is well, all are.
func (cl *Cluster) judge(answers []error) {
	var well, all []string
	var left []*member
	changed := false
	for i, m := range cl.members {
		all = append(all, m.endpoint)
		was, met := m.well, m.met
		if answers[i] == nil {
			m.well, m.met, m.failed = true, true, 0
		} else if m.failed++; m.failed >= leftAfter {
			m.well = false
		}
		if m.well {
			well = append(well, m.endpoint)
		}
		if m.well == was {
			continue
		}
		changed = true
		switch {
		case !met:
		case m.well:
			cl.log.Info("etcd member is asked again", "endpoint", m.endpoint)
		default:
			cl.log.Warn("etcd member is left", "endpoint", m.endpoint, "err", answers[i])
		}
		if !m.well {
			left = append(left, m)
		}
	}
	if !changed {
		return
	}
	if len(well) == 0 {
		well = all
	}
	cl.client.SetEndpoints(well...)
	for _, m := range left {
		// What waits for it would wait for long: a process that is stopped keeps its
		// connections.
		cl.wires.cut(dialed(m.endpoint))
	}
}

// dialed is an endpoint as the dialer gets it.
func dialed(endpoint string) string {
	if strings.HasPrefix(endpoint, "unix:") {
		return endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return endpoint
	}
	return u.Host
}

// Await waits until a member with a leader answers. It returns an error that wraps
// ErrEndpoint if every member that can be reached refuses this client, or is not
// who it should be; otherwise it goes on until ctx ends. waiting is called with the
// reasons when they are not the same as before.
func (cl *Cluster) Await(ctx context.Context, waiting func(error)) error {
	said := ""
	for {
		err := cl.reach(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrEndpoint) {
			return err
		}
		if text := err.Error(); text != said {
			said = text
			waiting(err)
		}
		if wait(ctx, time.Second) != nil {
			return fmt.Errorf("wait for etcd: %w: %w", ctx.Err(), err)
		}
	}
}

// reach is nil if a member with a leader answers. Otherwise it says of each why not.
func (cl *Cluster) reach(ctx context.Context) error {
	reasons := make([]error, len(cl.members))
	final := make([]bool, len(cl.members)) // waiting does not help
	reached := make([]bool, len(cl.members))
	var all sync.WaitGroup
	for i, m := range cl.members {
		all.Go(func() {
			if reached[i], final[i], reasons[i] = cl.knock(ctx, m.endpoint); reasons[i] == nil {
				reasons[i] = m.look(ctx, connectTimeout)
			}
		})
	}
	all.Wait()
	hopeless, somebody := true, false
	var errs []error
	for i, m := range cl.members {
		if reasons[i] == nil {
			return nil
		}
		somebody = somebody || reached[i]
		hopeless = hopeless && (final[i] || !reached[i])
		errs = append(errs, fmt.Errorf("%s: %w", m.endpoint, reasons[i]))
	}
	err := inOne(errs)
	if hopeless && somebody {
		return mesh.WithHint(fmt.Errorf("etcd: %w: %w", ErrEndpoint, err),
			"compare --etcd-ca, --etcd-cert and --etcd-key with the members' own --trusted-ca-file and --cert-file")
	}
	return mesh.WithHint(fmt.Errorf("%w: %w", ErrUnavailable, err), "see whether the members run: etcdctl --endpoints=%s endpoint status", strings.Join(cl.config.Endpoints, ","))
}

// inOne puts several reasons on one line.
func inOne(errs []error) error {
	format, args := "", []any{}
	for i, e := range errs {
		if i > 0 {
			format += "; "
		}
		format += "%w"
		args = append(args, e)
	}
	return fmt.Errorf(format, args...)
}

// hello is how an HTTP/2 client begins (RFC 9113, 3.4): the preface and a SETTINGS
// frame without a setting.
const hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// knock connects to a member as gRPC does, whose own errors say less. reached: it
// took the connection; final: it or this side will not change its mind.
func (cl *Cluster) knock(ctx context.Context, endpoint string) (reached, final bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	// Not one of the wires: it is not to be cut when the member is left.
	conn, err := connect(ctx, dialed(endpoint))
	if err != nil {
		return false, false, plainly(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if cl.tls != nil {
		config := cl.tls.Clone()
		config.NextProtos = []string{"h2"}
		config.ServerName, _, _ = net.SplitHostPort(dialed(endpoint))
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return true, refusal(err), plainly(orSilence(ctx, err))
		}
		conn = secure
	}
	// With TLS 1.3 a server refuses a client's certificate after the handshake.
	if _, err = io.WriteString(conn, hello); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 9))
	}
	return true, refusal(err), plainly(orSilence(ctx, err))
}

// orSilence is the error of a member that took a connection, or that it said nothing
// while there was time.
func orSilence(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errSilence
	}
	return err
}

// A member that has started and has had no leader yet does that.
var errSilence = errors.New("it takes connections and does not answer: too few of the members may run")

// refusal reports whether an error of TLS says that a certificate is not accepted,
// on either side.
func refusal(err error) bool {
	var ours *tls.CertificateVerificationError
	var theirs *net.OpError
	var record tls.RecordHeaderError
	return errors.As(err, &ours) || errors.As(err, &theirs) && theirs.Op == "remote error" || errors.As(err, &record)
}

// plainly puts an error of a connection in the words of who runs etcd.
func plainly(err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var expired x509.CertificateInvalidError
	var theirs *net.OpError
	var record tls.RecordHeaderError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		return fmt.Errorf("its certificate is of another authority than the one given: %w", err)
	case errors.As(err, &name):
		return fmt.Errorf("its certificate is for another address: %w", err)
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		return fmt.Errorf("its certificate is not valid now: %w", err)
	case errors.As(err, &theirs) && theirs.Op == "remote error":
		return fmt.Errorf("it refuses this controller's certificate, or wants one: %w", err)
	case errors.As(err, &record):
		return fmt.Errorf("it does not speak TLS: %w", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens there: %w", err)
	}
	return err
}
