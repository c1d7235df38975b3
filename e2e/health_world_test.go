package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
)

// patient is a machine whose server works as the test says.
type patient struct {
	*world.Machine
	mode, codes string // files
}

// patientServer is the command of a patient.
func patientServer(t *testing.T, mode, codes, port string) []string {
	t.Helper()
	script, err := filepath.Abs("testdata/health/server.py")
	if err != nil {
		t.Fatal(err)
	}
	return []string{"python3", script, mode, codes, port}
}

// startPatient starts a machine of acme with flags of `weft run`, and returns when
// its agent lists it.
func startPatient(t *testing.T, w *world.World, host, app, id, mode string, flags ...string) *patient {
	t.Helper()
	dir := w.Lab().Dir()
	p := &patient{mode: filepath.Join(dir, "mode-"+id), codes: filepath.Join(dir, "codes-"+id)}
	p.set(t, mode)
	p.Machine = runWith(t, w, host, app, id, flags, patientServer(t, p.mode, p.codes, "80")...)
	return p
}

// runWith runs a command as a machine of acme with flags of `weft run`, and returns
// when its agent lists it.
func runWith(t *testing.T, w *world.World, host, app, id string, flags []string, command ...string) *world.Machine {
	t.Helper()
	h := w.Hosts[host]
	args := slices.Concat([]string{"run", "--org", "acme", "--app", app, "--name", id}, flags, []string{"--"}, command)
	process, err := h.Host.Start("run-"+id, filepath.Join(w.Bin(), "weft"), args, []string{"WEFT_NAME=" + id})
	if err != nil {
		t.Fatal(err)
	}
	m := &world.Machine{Org: "acme", App: app, ID: id, Host: h, Process: process, Started: time.Now()}
	await(t, id+" to be on "+host, 20*time.Second, func(ctx context.Context) error {
		if process.Exited() {
			return lab.Hopeless(fmt.Errorf("it has ended: %s", process.LastLine()))
		}
		s, err := w.Status(ctx, h)
		if err != nil {
			return err
		}
		for _, a := range s.Machines {
			if a.ID == id {
				m.Address = a.Address
				return nil
			}
		}
		return errors.New("its agent does not list it")
	})
	return m
}

// set changes how the server works, at once.
func (p *patient) set(t *testing.T, mode string) {
	t.Helper()
	if err := os.WriteFile(p.mode+".new", []byte(mode), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p.mode+".new", p.mode); err != nil {
		t.Fatal(err)
	}
}

// answered are the codes of the looks that the server has answered.
func (p *patient) answered() []string {
	b, _ := os.ReadFile(p.codes) // nobody has looked yet
	return strings.Fields(string(b))
}

// inARow is how many of the last codes are 200.
func inARow(codes []string) (n int) {
	for _, c := range slices.Backward(codes) {
		if c != "200" {
			break
		}
		n++
	}
	return n
}

// watchers are machines that ask, one on each host.
type watchers map[string]*world.Machine

func startWatchers(t *testing.T, w *world.World) watchers {
	t.Helper()
	out := watchers{}
	for host := range w.Hosts {
		out[host] = start(t, w, host, "acme", "shell", "watcher-"+host)
	}
	return out
}

// see waits until the machines on all hosts are told these addresses for a name, and
// returns how long that took, by host.
func (ws watchers) see(t *testing.T, what string, within time.Duration, name string, want ...*world.Machine) map[string]time.Duration {
	t.Helper()
	began, took := time.Now(), map[string]time.Duration{}
	addrs := addresses(want...)
	await(t, what, within, func(ctx context.Context) error {
		var errs []error
		for host, from := range ws {
			if _, seen := took[host]; seen {
				continue
			}
			if err := nameIs(from, name, addrs...)(ctx); err != nil {
				errs = append(errs, fmt.Errorf("on %s: %w", host, err))
				continue
			}
			took[host] = time.Since(began).Round(time.Millisecond)
		}
		return errors.Join(errs...)
	})
	t.Logf("%s: %s is %d addresses after %v", what, name, len(want), took)
	return took
}

func addresses(machines ...*world.Machine) []string {
	var out []string
	for _, m := range machines {
		out = append(out, m.Address.String())
	}
	slices.Sort(out)
	return out
}

// healthIs waits until `weft machine list` shows a machine's health like this.
func healthIs(t *testing.T, w *world.World, id, want string) {
	t.Helper()
	await(t, "weft machine list to show "+id+" "+want, 10*time.Second, func(ctx context.Context) error {
		out, err := w.Weft(ctx, "machine", "list", "--org", "acme")
		if err != nil {
			return err
		}
		if header, _, _ := strings.Cut(out, "\n"); !strings.Contains(header, "HEALTH") {
			return lab.Hopeless(fmt.Errorf("no column HEALTH in\n%s", out))
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, id+" ") && strings.Contains(line, want) {
				return nil
			}
		}
		return fmt.Errorf("it shows\n%s", out)
	})
}

// machineInfo is what the controllers have of a machine.
func machineInfo(t *testing.T, w *world.World, id string) api.MachineInfo {
	t.Helper()
	list, err := world.List[api.MachineInfo](t.Context(), w, "machine", "list", "--org", "acme")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(m api.MachineInfo) bool { return m.ID == id })
	if i < 0 {
		t.Fatalf("there is no machine %s", id)
	}
	return list[i]
}

// texts asks for a name's TXT values.
func texts(ctx context.Context, from *world.Machine, name string) (string, error) {
	out, err := from.In(ctx, "dig", "+short", "+time=1", "+tries=1", "TXT", name)
	return strings.ReplaceAll(strings.TrimSpace(out), `"`, ""), err
}
