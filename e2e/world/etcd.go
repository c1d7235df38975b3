package world

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
)

// EtcdConfig says what cluster to make.
type EtcdConfig struct {
	Lab     *lab.Lab
	Bin     string // directory of the built programs
	Members int    // 0: 3
	// Sync makes every write wait for the disk. Without it only a crash of the whole
	// machine could lose one, and the lab has none.
	Sync  bool
	Flags []string // added to each member's own
}

// Etcd is a cluster of real members, each a process on a host of its own, that
// speak TLS and want a certificate from whoever speaks to them.
type Etcd struct {
	cfg       EtcdConfig
	Authority *Authority // of the members and their clients
	Members   []*EtcdMember
	client    Pair // a controller's
	tls       *tls.Config
}

// EtcdMember is a member, and the host that it runs on. It is cut off from the
// others by the lab's switch (CutHost, Cut) under its name.
type EtcdMember struct {
	*lab.Host
	Process *lab.Process
	DataDir string

	etcd *Etcd
	pair Pair
}

// etcdDeadline bounds what a healthy cluster does at once.
const etcdDeadline = 30 * time.Second

// NewEtcd makes the hosts etcd1, etcd2, ... in the lab, starts a member on each
// and returns when they have a leader.
func NewEtcd(ctx context.Context, cfg EtcdConfig) (*Etcd, error) {
	if cfg.Members == 0 {
		cfg.Members = 3
	}
	e := &Etcd{cfg: cfg}
	var err error
	if e.Authority, err = NewAuthority(filepath.Join(cfg.Lab.Dir(), "etcd-tls")); err != nil {
		return nil, fmt.Errorf("etcd's certificates: %w", err)
	}
	if e.client, err = e.Authority.Issue("controller"); err != nil {
		return nil, fmt.Errorf("etcd's certificates: %w", err)
	}
	if e.tls, err = e.clientTLS(); err != nil {
		return nil, fmt.Errorf("etcd's certificates: %w", err)
	}
	for i := range cfg.Members {
		if err := e.addHost(fmt.Sprintf("etcd%d", i+1)); err != nil {
			return nil, err
		}
	}
	for _, m := range e.Members {
		if err := m.start("new"); err != nil {
			return nil, err
		}
	}
	return e, e.Await(ctx)
}

func (e *Etcd) addHost(name string) error {
	host, err := e.cfg.Lab.Host(name, lab.HostConfig{})
	if err != nil {
		return err
	}
	m := &EtcdMember{Host: host, DataDir: filepath.Join(e.cfg.Lab.Dir(), name+"-data"), etcd: e}
	if m.pair, err = e.Authority.Issue(name, host.Addr()); err != nil {
		return fmt.Errorf("etcd's certificates: %w", err)
	}
	e.Members = append(e.Members, m)
	return nil
}

func (e *Etcd) clientTLS() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(e.client.Cert, e.client.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(e.Authority.cert)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}, nil
}

// Endpoints are the members' URLs for clients.
func (e *Etcd) Endpoints() []string {
	var out []string
	for _, m := range e.Members {
		out = append(out, m.URL())
	}
	return out
}

// TLS is what a client in the test needs to connect, besides a host to do it from.
func (e *Etcd) TLS() *tls.Config { return e.tls.Clone() }

// Flags are what weft-controller is given to work on the cluster.
func (e *Etcd) Flags() []string {
	return []string{
		"--etcd", strings.Join(e.Endpoints(), ","),
		"--etcd-ca", e.Authority.CA(), "--etcd-cert", e.client.Cert, "--etcd-key", e.client.Key,
	}
}

// URL is where clients reach the member.
func (m *EtcdMember) URL() string { return "https://" + netip.AddrPortFrom(m.Addr(), 2379).String() }

func (m *EtcdMember) peerURL() string {
	return "https://" + netip.AddrPortFrom(m.Addr(), 2380).String()
}

// start starts the member; state is "new" or "existing", and has no meaning for
// one that has its data.
func (m *EtcdMember) start(state string) (err error) {
	var cluster []string
	for _, o := range m.etcd.Members {
		cluster = append(cluster, o.Name()+"="+o.peerURL())
	}
	ca := m.etcd.Authority.CA()
	args := []string{
		"--name", m.Name(), "--data-dir", m.DataDir,
		"--listen-client-urls", m.URL(), "--advertise-client-urls", m.URL(),
		"--listen-peer-urls", m.peerURL(), "--initial-advertise-peer-urls", m.peerURL(),
		"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-state", state,
		"--client-cert-auth", "--trusted-ca-file", ca, "--cert-file", m.pair.Cert, "--key-file", m.pair.Key,
		"--peer-client-cert-auth", "--peer-trusted-ca-file", ca, "--peer-cert-file", m.pair.Cert, "--peer-key-file", m.pair.Key,
		// A tenth of what clusters over the internet use: a lost leader is missed soon.
		"--heartbeat-interval", "50", "--election-timeout", "500",
		"--log-level", "warn", "--logger", "zap",
	}
	if !m.etcd.cfg.Sync {
		args = append(args, "--unsafe-no-fsync")
	}
	m.Process, err = m.Host.Start("etcd", filepath.Join(m.etcd.cfg.Bin, "etcdmember"), append(args, m.etcd.cfg.Flags...), nil)
	return err
}

// StartNew starts a member of a cluster that begins anew, all of whose data is gone.
func (m *EtcdMember) StartNew() error { return m.start("new") }

// Start starts a member that has ended, on the data that it has.
func (m *EtcdMember) Start() error { return m.start("existing") }

// Kill ends the member as a crash would. Pause and Continue are its Process's.
func (m *EtcdMember) Kill() error { return m.Process.Kill() }

// Status is what a member says about itself and the cluster.
type Status struct {
	Header struct {
		Cluster  uint64 `json:"cluster_id,string"`
		Member   uint64 `json:"member_id,string"`
		Revision int64  `json:"revision,string"`
		Term     uint64 `json:"raft_term,string"`
	} `json:"header"`
	Leader uint64 `json:"leader,string"` // 0: it knows none
	Size   int64  `json:"dbSize,string"`
	InUse  int64  `json:"dbSizeInUse,string"`
}

// Status asks the member, from its own host: it answers also while it is cut off.
func (m *EtcdMember) Status(ctx context.Context) (s Status, err error) {
	return s, m.call(ctx, "/v3/maintenance/status", struct{}{}, &s)
}

// Healthy is an error unless the member can answer a read that the whole cluster
// agrees on.
func (m *EtcdMember) Healthy(ctx context.Context) error {
	return m.call(ctx, "/v3/kv/range", map[string]any{"key": []byte("health")}, nil)
}

// call is a request to etcd's JSON gateway.
func (m *EtcdMember) call(ctx context.Context, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{
		DialContext: m.DialContext, TLSClientConfig: m.etcd.TLS(), DisableKeepAlives: true,
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL()+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("etcd member %s: %w", m.Name(), err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(text, answer)
	}
	if err != nil {
		return fmt.Errorf("etcd member %s: %s: %w", m.Name(), path, err)
	}
	return nil
}

// Get returns the value of a key, as some member has it that answers for all.
func (e *Etcd) Get(ctx context.Context, key string) (string, error) {
	var answer struct {
		KVs []struct {
			Value []byte `json:"value"`
		} `json:"kvs"`
	}
	err := e.ask(ctx, "/v3/kv/range", map[string]any{"key": []byte(key)}, &answer)
	if err == nil && len(answer.KVs) == 0 {
		err = fmt.Errorf("etcd has no key %s", key)
	}
	if err != nil {
		return "", err
	}
	return string(answer.KVs[0].Value), nil
}

// Put sets a key.
func (e *Etcd) Put(ctx context.Context, key, value string) error {
	return e.ask(ctx, "/v3/kv/put", map[string]any{"key": []byte(key), "value": []byte(value)}, nil)
}

// ask is a request to one member after the other, until one answers.
func (e *Etcd) ask(ctx context.Context, path string, request, answer any) error {
	var errs []error
	for _, m := range e.Members {
		err := m.call(ctx, path, request, answer)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Await waits until the members given, or all, answer reads of the whole cluster
// and name the same leader.
func (e *Etcd) Await(ctx context.Context, members ...*EtcdMember) error {
	if len(members) == 0 {
		members = e.Members
	}
	return lab.Await(ctx, "the etcd members to have one leader", etcdDeadline, func(ctx context.Context) error {
		leader := uint64(0)
		for _, m := range members {
			if m.Process.Exited() {
				return lab.Hopeless(fmt.Errorf("etcd member %s has ended: %s", m.Name(), m.Process.LastLine()))
			}
			s, err := m.Status(ctx)
			if err == nil {
				err = m.Healthy(ctx)
			}
			if err != nil {
				return err
			}
			if leader == 0 {
				leader = s.Leader
			}
			if s.Leader == 0 || s.Leader != leader {
				return fmt.Errorf("%s says the leader is %x, others %x", m.Name(), s.Leader, leader)
			}
		}
		return nil
	})
}

// Leader returns the member that leads, by what most say who answer, and the term.
func (e *Etcd) Leader(ctx context.Context) (*EtcdMember, uint64, error) {
	votes, ids := map[uint64]int{}, map[uint64]*EtcdMember{}
	terms := map[uint64]uint64{}
	var errs []error
	for _, m := range e.Members {
		s, err := m.Status(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ids[s.Header.Member] = m
		votes[s.Leader]++
		terms[s.Leader] = max(terms[s.Leader], s.Header.Term)
	}
	for id, n := range votes {
		if n > len(e.Members)/2 && ids[id] != nil {
			return ids[id], terms[id], nil
		}
	}
	return nil, 0, errors.Join(append(errs, errors.New("no member is said by most to lead"))...)
}

// Follower returns a member that does not lead.
func (e *Etcd) Follower(ctx context.Context) (*EtcdMember, error) {
	leader, _, err := e.Leader(ctx)
	if err != nil {
		return nil, err
	}
	return e.Members[(slices.Index(e.Members, leader)+1)%len(e.Members)], nil
}

// Replace makes another member of this one, as its operator does when its disk is
// gone: it is removed from the cluster, loses its data, is added anew and starts
// empty. The others must have a quorum. The id is another one afterwards.
func (e *Etcd) Replace(ctx context.Context, m *EtcdMember) error {
	if !m.Process.Exited() {
		if err := m.Process.Kill(); err != nil {
			return err
		}
	}
	other := e.Members[(slices.Index(e.Members, m)+1)%len(e.Members)]
	var list struct {
		Members []struct {
			ID    string   `json:"ID"`
			Peers []string `json:"peerURLs"`
		} `json:"members"`
	}
	if err := other.call(ctx, "/v3/cluster/member/list", struct{}{}, &list); err != nil {
		return err
	}
	for _, member := range list.Members {
		if !slices.Contains(member.Peers, m.peerURL()) {
			continue
		}
		// etcd refuses while it thinks that too few have been well for long enough.
		err := lab.Await(ctx, "etcd to let a member go", etcdDeadline, func(ctx context.Context) error {
			return other.call(ctx, "/v3/cluster/member/remove", map[string]any{"ID": member.ID}, nil)
		})
		if err != nil {
			return err
		}
	}
	if err := os.RemoveAll(m.DataDir); err != nil {
		return err
	}
	// And for a moment after another change of members.
	err := lab.Await(ctx, "etcd to take a new member", etcdDeadline, func(ctx context.Context) error {
		return other.call(ctx, "/v3/cluster/member/add", map[string]any{"peerURLs": []string{m.peerURL()}}, nil)
	})
	if err != nil {
		return err
	}
	if err := m.start("existing"); err != nil {
		return err
	}
	return e.Await(ctx)
}
