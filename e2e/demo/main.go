// Command demo shows weft's main job on this machine: a mesh of three regions in
// network namespaces, with real programs, and what must hold of it, fact by fact.
// It needs root. It leaves nothing behind, unless asked to keep the mesh running.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
)

func main() {
	keep := flag.Bool("keep", false, "leave the mesh running afterwards, in the background")
	stop := flag.Bool("stop", false, "end a mesh that was left running")
	breaks := flag.Bool("break", false, "switch off the mechanism behind each fact in turn: each must be noticed")
	only := flag.Int("only", 0, "show (or break) this fact alone")
	serve := flag.Bool("serve", false, "internal: be the background of --keep")
	flag.Parse()

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	var err error
	switch {
	case os.Geteuid() != 0:
		err = errors.New("network namespaces need root: run it with sudo")
	case *stop:
		err = stopKept()
	case *keep && !*serve:
		err = keepRunning()
	case *breaks:
		err = runBreaks(ctx, *only)
	default:
		err = runFacts(ctx, *only, *serve)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// bin is where this program is; the others are beside it.
func bin() (string, error) {
	exe, err := os.Executable()
	return filepath.Dir(exe), err
}

func newLab() (*lab.Lab, error) {
	return lab.New(lab.Config{Dir: labDir()})
}

func labDir() string { return filepath.Join(os.TempDir(), "weft-demo") }

func say(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }

func runFacts(ctx context.Context, only int, kept bool) error {
	began := time.Now()
	dir, err := bin()
	if err != nil {
		return err
	}
	l, err := newLab()
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("weft: a mesh of three regions, two orgs, a laptop and a stock client behind NAT")
	s, err := newStage(ctx, l, dir, nil, say)
	if err != nil {
		return fmt.Errorf("the mesh did not come up: %w\n%s", err, l.Tails())
	}
	fmt.Println("\nwhat must hold:")
	held, total := 0, 0
	for i, f := range facts {
		if only != 0 && only != i+1 {
			continue
		}
		total++
		if err := show(ctx, s, i, f); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted; all that was made is being removed")
			}
			fmt.Printf("        logs: %s\n", l.Dir())
			l.KeepDir()
			continue
		}
		held++
	}
	fmt.Printf("\ndemo: %d of %d facts hold (%s)\n", held, total, time.Since(began).Round(100*time.Millisecond))
	if kept {
		return leaveRunning(ctx, s, held == total)
	}
	if held != total {
		return fmt.Errorf("%d of %d facts do not hold", total-held, total)
	}
	return nil
}

func show(ctx context.Context, s *stage, i int, f fact) error {
	began := time.Now()
	proof, err := f.check(ctx, s)
	took := time.Since(began).Round(time.Millisecond)
	if err != nil {
		fmt.Printf("  %2d. NO   %-58s %8s\n        why: %v\n", i+1, f.name, took, err)
		return err
	}
	fmt.Printf("  %2d. yes  %-58s %8s\n        %s\n", i+1, f.name, took, proof)
	return nil
}

// runBreaks checks each fact in a world of its own whose mechanism is off: the
// fact must fail, and by its own check, not because the world did not come up.
func runBreaks(ctx context.Context, only int) error {
	dir, err := bin()
	if err != nil {
		return err
	}
	noticed, total := 0, 0
	for i, f := range facts {
		if only != 0 && only != i+1 {
			continue
		}
		total++
		proof, err := breakOne(ctx, dir, f)
		if ctx.Err() != nil {
			return errors.New("interrupted; all that was made is being removed")
		}
		off := strings.Join(f.disable, " and ")
		var unusable *setupError
		switch {
		case errors.As(err, &unusable):
			fmt.Printf("  %2d. NOT TRIED  without %-22s %s\n        the mesh did not come up: %v\n", i+1, off, f.name, err)
		case err == nil:
			fmt.Printf("  %2d. MISSED     without %-22s %s\n        it was still said to hold: %s\n", i+1, off, f.name, proof)
		default:
			noticed++
			fmt.Printf("  %2d. noticed    without %-22s %s\n        %s\n", i+1, off, f.name, firstLine(err))
		}
	}
	fmt.Printf("\ndemo-break: %d of %d breaks noticed\n", noticed, total)
	if noticed != total {
		return fmt.Errorf("%d of %d breaks were not noticed", total-noticed, total)
	}
	return nil
}

type setupError struct{ error }

func (e *setupError) Unwrap() error { return e.error }

func breakOne(ctx context.Context, dir string, f fact) (string, error) {
	l, err := newLab()
	if err != nil {
		return "", &setupError{err}
	}
	defer l.Close()
	s, err := newStage(ctx, l, dir, f.disable, func(string, ...any) {})
	if err != nil {
		return "", &setupError{err}
	}
	return f.check(ctx, s)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// A kept mesh lives in a process of its own, since the switch between its hosts
// does; its id is in a file.

func pidFile() string { return filepath.Join(os.TempDir(), "weft-demo.pid") }

// kept returns the process that holds a kept mesh, 0 if there is none.
func kept() int {
	b, err := os.ReadFile(pidFile())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	// The number may be somebody else's by now.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), "\x00--serve") {
		return 0
	}
	return pid
}

func keepRunning() error {
	if pid := kept(); pid != 0 {
		return fmt.Errorf("a mesh is already kept by process %d: `make demo-stop` ends it", pid)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	output, write, err := os.Pipe()
	if err != nil {
		return err
	}
	child := exec.Command(exe, "--serve")
	child.Stdout, child.Stderr = write, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	write.Close()
	var last strings.Builder
	if _, err := io.Copy(io.MultiWriter(os.Stdout, &last), output); err != nil {
		return err
	}
	if kept() != child.Process.Pid {
		child.Wait()
		return errors.New("the mesh was not kept")
	}
	if !strings.Contains(last.String(), "all hold") {
		return errors.New("not all facts hold; the mesh is kept all the same, so that you can look")
	}
	return nil
}

// leaveRunning says how to look at the mesh, lets the caller's terminal go and
// waits to be ended.
func leaveRunning(ctx context.Context, s *stage, all bool) error {
	if err := os.WriteFile(pidFile(), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		return err
	}
	defer os.Remove(pidFile())
	fmt.Print(howToLook(s))
	if all {
		fmt.Println("all hold; the mesh goes on in the background. `make demo-stop` ends it.")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Dup2(int(null.Fd()), 1), syscall.Dup2(int(null.Fd()), 2)); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func howToLook(s *stage) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("\nThe mesh is running. Each host has namespaces of its own; enter one (as root) with the command behind it:")
	line("  controller  pid %-7d %-13s %s", s.ControllerProcess().Pid(), s.Controller.Addr(), s.Controller.Enter())
	for _, r := range regions {
		h := s.Hosts[r.name+"1"]
		line("  agent %-5s pid %-7d %-13s %s", h.Name(), h.Agent.Pid(), h.Addr(), h.Enter())
	}
	if s.up != nil {
		line("  laptop      pid %-7d %-13s %s", s.up.Pid(), s.laptop.Addr(), s.laptop.Enter())
	}
	line("  stock wg                %-13s %s", s.stock.Addr(), s.stock.Enter())
	for _, key := range slices.Sorted(maps.Keys(s.Machines)) {
		if m := s.Machines[key]; !m.Process.Exited() {
			if pid, err := m.Pid(); err == nil {
				line("  machine %-16s on %-5s %s", key, m.Host.Name(), fmt.Sprintf("nsenter -t %d -n -m -u -p", pid))
			}
		}
	}
	fra := s.Hosts["fra1"].Enter()
	line("\nFor example:")
	line("  %s env WEFT_CONFIG_DIR=%s/operator %s/weft host list", s.Controller.Enter(), s.Lab().Dir(), s.Bin())
	line("  %s %s/weft status                           # of host fra1", fra, s.Bin())
	line("  %s ip netns exec weft wg show               # its tunnels", fra)
	line("  %s ip netns exec weft nft list ruleset      # its firewall", fra)
	if pid, err := s.machine("api", "fra").Pid(); err == nil {
		line("  nsenter -t %d -n -m -u -p dig AAAA web.internal         # in machine api-fra", pid)
		line("  nsenter -t %d -n -m -u -p curl http://web.internal/", pid)
	}
	line("  ls %s    # logs and state\n", s.Lab().Dir())
	return b.String()
}

func stopKept() error {
	pid := kept()
	if pid == 0 {
		fmt.Println("demo: nothing is kept")
		if err := os.Remove(pidFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return lab.Sweep(labDir()) // what is left if its process was killed
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return lab.Await(ctx, fmt.Sprintf("process %d to end", pid), 30*time.Second, func(context.Context) error {
		// It removes what it made before it ends.
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return errors.New("it is still there")
		}
		return nil
	})
}
