package attach

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// screenAndKeys is a pseudo-terminal with a program on it.
type screenAndKeys struct {
	*exec.Cmd
	keys   *os.File
	seen   chan string
	screen string // all that was seen
	behind int    // how much of it was waited for
}

// onTerminal starts a program as the leader of a session on a terminal.
func onTerminal(t *testing.T, env []string, command ...string) *screenAndKeys {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	check(t, err)
	check(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	defer slave.Close()
	x := &screenAndKeys{Cmd: exec.Command(command[0], command[1:]...), keys: master, seen: make(chan string, 1000)}
	x.Env, x.Stdin, x.Stdout, x.Stderr = env, slave, slave, slave
	x.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	check(t, x.Start())
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(x.seen)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if err != nil {
				return // EIO: nobody has the other end
			}
			x.seen <- string(buf[:n])
		}
	}()
	t.Cleanup(func() {
		x.Process.Kill()
		x.Wait()
		<-read
		master.Close()
	})
	return x
}

func (x *screenAndKeys) press(t *testing.T, keys string) {
	t.Helper()
	_, err := x.keys.WriteString(keys)
	check(t, err)
}

// foreground is the process group that has the terminal.
func (x *screenAndKeys) foreground(t *testing.T) int {
	t.Helper()
	group, err := unix.IoctlGetInt(int(x.keys.Fd()), unix.TIOCGPGRP)
	check(t, err)
	return group
}

// shows waits until the screen shows something behind what was waited for before.
func (x *screenAndKeys) shows(t *testing.T, want string) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		if at := strings.Index(x.screen[x.behind:], want); at >= 0 {
			x.behind += at + len(want)
			return
		}
		select {
		case s, ok := <-x.seen:
			if !ok {
				t.Fatalf("no %q on the screen: %q", want, x.screen)
			}
			x.screen += s
		case <-timer.C:
			t.Fatalf("no %q on the screen: %q", want, x.screen)
		}
	}
}

// A key's signal reaches the command once, and `weft run` lives on to tell its code.
func TestTerminalInterrupt(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	x := onTerminal(t, standInEnviron(plane, 1, ""), "/proc/self/exe", "sh", "-c", `trap 'echo got''it' INT; trap 'exit 5' QUIT; sleep 1000 & echo rea''dy; while :; do wait; done`)
	x.shows(t, "ready")
	x.press(t, "\x03")
	x.shows(t, "gotit")
	x.press(t, "\x1c")
	err := x.Wait()
	if x.ProcessState.ExitCode() != 5 || strings.Count(x.screen, "gotit") != 1 {
		t.Errorf("%v, screen %q", err, x.screen)
	}
}

// A shell's job control holds for a machine's command: it can be stopped, brought
// back and interrupted, and an interactive shell inside gives the terminal back.
func TestTerminalJobControl(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	x := onTerminal(t, append(standInEnviron(plane, 1, ""), "PS1=", "ENV=", "weft="+"/proc/"+fmt.Sprint(os.Getpid())+"/exe"), "sh", "-i")
	x.press(t, "stty -echo; echo o''k\n")
	x.shows(t, "ok")
	x.press(t, "$weft sh -c 'echo rea''dy; exec sleep 1000'\n")
	x.shows(t, "ready")
	group := x.foreground(t)
	x.press(t, "\x1a")
	x.shows(t, "Stopped")
	x.press(t, "fg; echo co''de $?\n")
	x.shows(t, "sleep 1000") // the shell tells what it brings back
	eventually(t, "the command has the terminal again", func() bool { return x.foreground(t) == group })
	x.press(t, "\x03")
	x.shows(t, "code 130")
	x.press(t, "$weft sh -i\n")
	x.press(t, "echo in''side; exit 6\n")
	x.shows(t, "inside")
	x.press(t, "echo co''de $?\n")
	x.shows(t, "code 6")
	// Started in the background it stops when it reads, and does not take the
	// terminal from the shell.
	x.press(t, "$weft sh -c 'read x; echo re''ad $x' &\n")
	eventually(t, "it is stopped", func() bool {
		x.press(t, "jobs; echo lis''ted\n")
		x.shows(t, "listed")
		return strings.Contains(x.screen[strings.LastIndex(x.screen, "code 6"):], "Stopped")
	})
	x.press(t, "fg\n")
	x.shows(t, "$x")
	x.press(t, "word\n")
	x.shows(t, "read word")
	// In a pipeline the others keep the terminal too.
	x.press(t, "$weft sh -c 'trap \"echo go\"\"tit; exit 7\" INT; echo rea\"\"dy; sleep 1000 & while :; do wait; done' | (trap '' INT; cat; echo en''d)\n")
	x.shows(t, "ready")
	x.press(t, "\x03")
	x.shows(t, "gotit")
	x.shows(t, "end")
}
