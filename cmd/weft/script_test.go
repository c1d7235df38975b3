package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/peers/netns"
)

// The scripts drive the real programs. WEFT_BIN is where they are; without it they
// are built first.
//
// Besides testscript's own commands there are:
//
//	mesh [FLAGS]          start a controller on $WORK/controller, wait until it is ready,
//	                      set $CONTROLLER, and $WEFT_CONTEXT to its operator's credential
//	halt                  end it, and check that it ends well
//	joins KIND NAME TOKEN enrol a node with the token in a file, over the API alone
//	waitfor FILE TEXT     until the file holds the text
//	port NAME             put a free TCP port into $NAME
//	taken NAME            put a TCP and UDP port that somebody listens on into $NAME
//	namespace NAME        make a network namespace with lo up for the script; $NS is its path
//	leaves NAME           remove this network namespace when the script has ended
//	downs SOCKET          end the "weft up" on this socket when the script has ended, however
//	ends CODE COMMAND...  run a command that ends with this exit code
//	ahead YEARS           a controller whose clock is ahead: operator.yaml, ahead.token, $AHEAD
//	was DIR, same DIR     note what a directory holds; check that nothing has changed
func TestScripts(t *testing.T) {
	bin := programs(t)
	for _, p := range []string{"nsenter", "unshare", "setpriv", "wg-quick", "curl"} {
		if _, err := exec.LookPath(p); err != nil && os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed, and scripts would be skipped; make deps installs it", p)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(2 * time.Minute),
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			// Names of what is the whole machine's must be the script's own.
			env.Setenv("UNIQUE", fmt.Sprintf("%x", sha256.Sum256([]byte(env.WorkDir)))[:6])
			env.Values[stateKey{}] = &scriptState{was: map[string]string{}}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"mesh": cmdMesh, "halt": cmdHalt, "joins": cmdJoins, "waitfor": cmdWaitFor, "port": cmdPort,
			"ends": cmdEnds, "taken": cmdTaken, "namespace": cmdNamespace, "leaves": cmdLeaves, "downs": cmdDowns, "was": cmdWas, "same": cmdSame, "ahead": cmdAhead,
		},
	})
}

// TestMain removes what programs built.
func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(built.dir)
	os.Exit(code)
}

// built is where the commands were built, once for all tests.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// programs returns the directory of the three commands.
func programs(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("WEFT_BIN"); dir != "" {
		return dir
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "weft-bin"); built.err != nil {
			return
		}
		out, err := exec.Command("go", "build", "-o", built.dir+"/", "github.com/weftmesh/weft/cmd/weft",
			"github.com/weftmesh/weft/cmd/weft-agent", "github.com/weftmesh/weft/cmd/weft-controller").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("build the commands: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

type stateKey struct{}

// scriptState is what one script's commands share.
type scriptState struct {
	controller *exec.Cmd
	was        map[string]string
}

func state(ts *testscript.TestScript) *scriptState { return ts.Value(stateKey{}).(*scriptState) }

// eventually polls until ok, or fails the script.
func eventually(ts *testscript.TestScript, what string, ok func() bool) {
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			ts.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}

func cmdMesh(ts *testscript.TestScript, neg bool, args []string) {
	dir, log := ts.MkAbs("controller"), ts.MkAbs("controller.log")
	out, err := os.Create(log)
	ts.Check(err)
	defer out.Close()
	command := []string{"weft-controller", "run", "--data-dir", dir, "--listen", "127.0.0.1:0", "--metrics", ""}
	if ns := ts.Getenv("NS"); ns != "" {
		command = append([]string{"nsenter", "--net=" + ns}, command...)
	}
	command = append(command, args...)
	path, err := exec.LookPath(command[0])
	if err != nil {
		path = filepath.Join(strings.Split(ts.Getenv("PATH"), ":")[0], command[0])
	}
	cmd := &exec.Cmd{Path: path, Args: command, Stderr: out, Env: []string{"PATH=" + ts.Getenv("PATH")}}
	ts.Check(cmd.Start())
	s := state(ts)
	s.controller = cmd
	ts.Defer(func() {
		if s.controller != nil {
			s.controller.Process.Kill()
			s.controller.Wait()
		}
	})
	eventually(ts, "the controller is ready", func() bool {
		text, _ := os.ReadFile(log)
		if cmd.Process.Signal(syscall.Signal(0)) != nil {
			ts.Fatalf("the controller ended: %s", text)
		}
		return bytes.Contains(text, []byte("msg=ready"))
	})
	text, err := os.ReadFile(log)
	ts.Check(err)
	_, after, _ := strings.Cut(string(text), "msg=ready addr=")
	addr, _, _ := strings.Cut(after, " ")
	ts.Setenv("CONTROLLER", "https://"+addr)
	ts.Setenv("WEFT_CONTEXT", filepath.Join(dir, "operator.yaml"))
}

func cmdHalt(ts *testscript.TestScript, neg bool, args []string) {
	s := state(ts)
	ts.Check(s.controller.Process.Signal(syscall.SIGTERM))
	err := s.controller.Wait()
	s.controller = nil
	if err != nil {
		ts.Fatalf("the controller did not end well: %v", err)
	}
}

func cmdJoins(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: joins KIND NAME TOKENFILE")
	}
	err := join(ts.Getenv("CONTROLLER"), args[1], ts.ReadFile(args[2]), ts.MkAbs("keys-"+args[1]))
	if (err != nil) != neg {
		ts.Fatalf("joins: %v", err)
	}
}

func join(server, name, text, keyDir string) error {
	token, err := enroll.ParseToken(text)
	if err != nil {
		return err
	}
	keys, err := enroll.LoadOrCreateKeys(keyDir)
	if err != nil {
		return err
	}
	der, err := keys.TLSPublic()
	if err != nil {
		return err
	}
	client, err := api.New(api.Config{Servers: []string{server}, TLS: enroll.ClientTLS(enroll.ClientConfig{Pin: token.Pin})})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return client.Do(ctx, "POST", "/v1/enroll", api.EnrollRequest{
		Token: token.Text(), Name: name, Key: keys.WireGuard.PublicKey().String(), TLSKey: der, Endpoint: "192.0.2.1:51820",
	}, nil)
}

func cmdEnds(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func cmdWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: waitfor FILE TEXT")
	}
	eventually(ts, fmt.Sprintf("%s holds %q", args[0], args[1]), func() bool {
		text, _ := os.ReadFile(ts.MkAbs(args[0]))
		return bytes.Contains(text, []byte(args[1]))
	})
}

func cmdPort(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer l.Close()
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

func cmdTaken(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: l.Addr().(*net.TCPAddr).IP, Port: l.Addr().(*net.TCPAddr).Port})
	ts.Check(err)
	ts.Defer(func() {
		l.Close()
		u.Close()
	})
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

func cmdNamespace(ts *testscript.TestScript, neg bool, args []string) {
	h, err := netns.Create(args[0])
	ts.Check(err)
	ts.Defer(func() {
		h.Close()
		netns.Remove(args[0])
	})
	nl, err := h.Netlink()
	ts.Check(err)
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	ts.Check(err)
	ts.Check(nl.LinkSetUp(lo))
	ts.Setenv("NS", filepath.Join(netns.Dir, args[0]))
}

// cmdLeaves is for an agent's data plane, which outlives the agent.
func cmdLeaves(ts *testscript.TestScript, neg bool, args []string) {
	ts.Defer(func() { netns.Remove(args[0]) })
}

// cmdDowns is for what went into the background: nobody else ends it if the script
// fails.
func cmdDowns(ts *testscript.TestScript, neg bool, args []string) {
	socket := ts.MkAbs(args[0])
	ts.Defer(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		local.Client{Socket: socket}.Down(ctx)
	})
}

func cmdWas(ts *testscript.TestScript, neg bool, args []string) {
	state(ts).was[args[0]] = contents(ts, args[0])
}

func cmdSame(ts *testscript.TestScript, neg bool, args []string) {
	if was, now := state(ts).was[args[0]], contents(ts, args[0]); was != now {
		ts.Fatalf("%s has changed.\nwas:\n%s\nis:\n%s", args[0], was, now)
	}
}

// contents describes all that is in a directory: names, modes, texts.
func contents(ts *testscript.TestScript, dir string) string {
	var b strings.Builder
	root := ts.MkAbs(dir)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		fmt.Fprintf(&b, "%s %s", info.Mode(), rel)
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(text)
			fmt.Fprintf(&b, " %s", base64.RawStdEncoding.EncodeToString(sum[:6]))
		}
		b.WriteByte('\n')
		return nil
	})
	ts.Check(err)
	return b.String()
}

// A WireGuard key of the tests is a real one: nothing here may accept another.
func TestConfigurationHoldsTheWholeTunnel(t *testing.T) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	text, err := configuration(api.CreatedClient{}, key, false)
	if err == nil {
		t.Errorf("a configuration without an address was written: %s", text)
	}
}
