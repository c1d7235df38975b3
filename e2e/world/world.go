// Package world is a whole mesh in the lab: one controller or several, with etcd
// inside or in a cluster, hosts in regions that are as far apart as on the map,
// machines, laptops. It uses the product as an
// operator does, by its commands alone, and is what the demo and the scenarios
// share. What a mesh must do is asserted there, not here.
package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
)

// Config says what world to make.
type Config struct {
	Lab *lab.Lab
	Bin string // directory of the built programs
	// Disable switches mechanisms of the agents off, to see that it is noticed.
	Disable []string
	// ControllerFlags and AgentFlags are added to the commands' own.
	ControllerFlags, AgentFlags []string
	// Etcd is the cluster that the controllers work on; nil: the only one has etcd
	// inside.
	Etcd *Etcd
	// Controllers is how many there are, each on a host of its own; 0: 1. Several
	// need Etcd.
	Controllers int
}

// World is a mesh in the lab. Its methods are for one goroutine at a time, unless
// they say otherwise.
type World struct {
	cfg         Config
	Controllers []*Controller
	Controller  *lab.Host // the first one's, where the operator types, too
	URL         string    // of the first one
	Hosts       map[string]*Host
	Machines    map[string]*Machine // by "<org>/<id>"
}

// Host is an edge host.
type Host struct {
	*lab.Host
	Region string
	Agent  *lab.Process
	args   []string
}

// Machine is a command that runs as a machine.
type Machine struct {
	Org, App, ID string
	Host         *Host
	Address      netip.Addr
	Process      *lab.Process // `weft run`
	Started      time.Time
}

// New makes the controllers' places in the lab and starts them, on a store without
// a mesh.
func New(ctx context.Context, cfg Config) (*World, error) {
	w := Unstarted(cfg)
	for range max(cfg.Controllers, 1) {
		if _, err := w.AddController(ctx); err != nil {
			return nil, err
		}
	}
	if _, err := w.Weft(ctx, "context", "add", "lab", "--file", filepath.Join(w.Controllers[0].DataDir, "operator.yaml")); err != nil {
		return nil, err
	}
	return w, nil
}

// Unstarted is New without any controller: see PlaceController and AddController.
func Unstarted(cfg Config) *World {
	return &World{cfg: cfg, Hosts: map[string]*Host{}, Machines: map[string]*Machine{}}
}

func (w *World) bin(name string) string { return filepath.Join(w.cfg.Bin, name) }

// Weft types a command of the operator and returns what it prints.
func (w *World) Weft(ctx context.Context, args ...string) (string, error) {
	env := []string{"WEFT_CONFIG_DIR=" + filepath.Join(w.cfg.Lab.Dir(), "operator")}
	return w.Controller.RunEnv(ctx, env, w.bin("weft"), args...)
}

// List asks for a list in JSON: `weft NOUN list`.
func List[T any](ctx context.Context, w *World, args ...string) ([]T, error) {
	out, err := w.Weft(ctx, append(args, "-o", "json")...)
	if err != nil {
		return nil, err
	}
	var list []T
	return list, json.Unmarshal([]byte(out), &list)
}

// Token makes a join token and returns the path of a file that holds it.
func (w *World) Token(ctx context.Context, args ...string) (string, error) {
	out, err := w.Weft(ctx, append([]string{"token", "create"}, args...)...)
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(w.cfg.Lab.Dir(), "token-")
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = f.WriteString(out)
	return f.Name(), err
}

// AddHost makes a host in the lab and starts its agent with a token of its own.
func (w *World) AddHost(ctx context.Context, name, region string, flags ...string) (*Host, error) {
	token, err := w.Token(ctx, "--kind", "host", "--orgs", "all", "--region", region)
	if err != nil {
		return nil, err
	}
	return w.AddHostWith(ctx, name, region, token, flags...)
}

// AddHostWith is AddHost with a token in a file.
func (w *World) AddHostWith(ctx context.Context, name, region, token string, flags ...string) (*Host, error) {
	lh, err := w.cfg.Lab.Host(name, lab.HostConfig{Daemons: []string{"weft-agent device "}})
	if err != nil {
		return nil, err
	}
	h := &Host{Host: lh, Region: region}
	h.args = append([]string{
		"run", "--controller", strings.Join(w.URLs(), ","), "--token-file", token, "--name", name,
		"--state-dir", w.StateDir(name),
	}, w.cfg.AgentFlags...)
	h.args = append(h.args, flags...)
	if len(w.cfg.Disable) > 0 {
		h.args = append(h.args, "--disable", strings.Join(w.cfg.Disable, ","))
	}
	w.Hosts[name] = h
	return h, w.StartAgent(h)
}

// StateDir is where a host's agent keeps what it is.
func (w *World) StateDir(host string) string { return filepath.Join(w.cfg.Lab.Dir(), "agent-"+host) }

// StartAgent starts a host's agent, for the first time or again.
func (w *World) StartAgent(h *Host) error { return w.StartAgentOf(h, w.bin("weft-agent")) }

// StartAgentOf is StartAgent with a program of another version.
func (w *World) StartAgentOf(h *Host, program string) (err error) {
	h.Agent, err = h.Start("agent", program, h.args, nil)
	return err
}

// AwaitHosts waits until every host is present and has a tunnel to all that it
// should have one to.
func (w *World) AwaitHosts(ctx context.Context) error {
	return lab.Await(ctx, "all hosts to be present", 20*time.Second, func(ctx context.Context) error {
		list, err := List[api.HostInfo](ctx, w, "host", "list")
		if err != nil {
			return err
		}
		present := 0
		for _, h := range list {
			if h.Present {
				present++
			}
		}
		for _, h := range w.Hosts {
			if h.Agent.Exited() {
				return lab.Hopeless(fmt.Errorf("the agent of %s has ended: %s", h.Name(), h.Agent.LastLine()))
			}
		}
		if present != len(w.Hosts) {
			return fmt.Errorf("%d of %d are", present, len(w.Hosts))
		}
		return nil
	})
}

// Start runs a command as a machine on h and returns when it has its address and
// runs. id may be empty.
func (w *World) Start(ctx context.Context, h *Host, org, app, id string, command ...string) (*Machine, error) {
	args := []string{"run", "--org", org, "--app", app}
	if id != "" {
		args = append(args, "--name", id)
	}
	args = append(append(args, "--"), command...)
	env := []string{"WEFT_REGION=" + h.Region, "WEFT_NAME=" + id}
	m := &Machine{Org: org, App: app, ID: id, Host: h, Started: time.Now()}
	p, err := h.Host.Start("run-"+org+"-"+app+"-"+id, w.bin("weft"), args, env)
	if err != nil {
		return nil, err
	}
	m.Process = p
	err = lab.Await(ctx, "machine "+org+"/"+id+" to run", 20*time.Second, func(ctx context.Context) error {
		if p.Exited() {
			return lab.Hopeless(fmt.Errorf("it has ended: %s", p.LastLine()))
		}
		pid, err := m.Pid()
		if err != nil {
			return err
		}
		if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil {
			return err
		}
		s, err := w.Status(ctx, h)
		if err != nil {
			return err
		}
		for _, a := range s.Machines {
			if a.Org == org && a.ID == id {
				m.Address = a.Address
				return nil
			}
		}
		return errors.New("the agent does not list it")
	})
	if err != nil {
		p.Kill()
		return nil, err
	}
	w.Machines[org+"/"+id] = m
	return m, nil
}

// Pid is the process id of the machine's command as the lab sees it: the child of
// the machine's init, which is the child of `weft run`.
func (m *Machine) Pid() (int, error) {
	pid := m.Process.Pid()
	for range 2 {
		child, err := firstChild(pid)
		if err != nil {
			return 0, err
		}
		pid = child
	}
	return pid, nil
}

func firstChild(pid int) (int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue
		}
		if fields := strings.Fields(string(b)); len(fields) > 0 {
			return strconv.Atoi(fields[0])
		}
	}
	return 0, fmt.Errorf("process %d has no child yet", pid)
}

// In runs a command in the machine's namespaces, as `docker exec` would.
func (m *Machine) In(ctx context.Context, command ...string) (string, error) {
	pid, err := m.Pid()
	if err != nil {
		return "", err
	}
	return m.Host.RunIn(ctx, pid, command[0], command[1:]...)
}

// Endpoint is the machine's /112, as records and views have it.
func (m *Machine) Endpoint() string { return ipam.EndpointOf(m.Address).String() }

// Kill ends `weft run` with SIGKILL, as a crash would.
func (m *Machine) Kill() error { return m.Process.Kill() }

// Status asks a host's agent.
func (w *World) Status(ctx context.Context, h *Host) (s local.Status, err error) {
	out, err := h.Run(ctx, w.bin("weft"), "status", "-o", "json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// Echo is the command of a machine that answers over HTTP with its name and
// region.
func (w *World) Echo() []string { return []string{w.bin("workload")} }

// Bin is the directory of the built programs.
func (w *World) Bin() string { return w.cfg.Bin }

// Lab is the lab that the world is in.
func (w *World) Lab() *lab.Lab { return w.cfg.Lab }
