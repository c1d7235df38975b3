package attach

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// group says which process group the command is in.
type group string

const (
	// ownGroup: there is no terminal. What a terminal sends to our group does not
	// reach the command twice.
	ownGroup group = "own"
	// sharedGroup: one of several at the terminal (`weft run … | less`): the command
	// stays in our group, with the others of the pipeline.
	sharedGroup group = "shared"
	// foregroundGroup: alone at the terminal. The command and the machine's init make
	// up a group that has the terminal in our place. So the group is one of the
	// machine's own processes, which an interactive shell needs.
	foregroundGroup group = "foreground"
)

// terminal is what the command has of a terminal.
//
//	            start                     command stopped (a key)
//	shell ------------> us, terminal's -------------------------> us stopped too,
//	                    group: command     terminal's group: ours   shell goes on
//	                         ^                                           |
//	                         '------- SIGCONT (fg): terminal back -------'
type terminal struct {
	group group
	file  *os.File // with foregroundGroup
	lent  bool     // the command's group has it, or another that the command made
}

func terminalOf(in, out *os.File) *terminal {
	switch {
	case !isTerminal(in):
		return &terminal{group: ownGroup}
	case !isTerminal(out):
		return &terminal{group: sharedGroup}
	}
	return &terminal{group: foregroundGroup, file: in}
}

func isTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// signals are those that the terminal's business needs beside the passed on.
func (t *terminal) signals() []os.Signal {
	if t.group == foregroundGroup {
		return []os.Signal{unix.SIGCONT}
	}
	return nil
}

// ours reports whether our group has the terminal: we are not in the background.
func (t *terminal) ours() bool {
	have, err := unix.IoctlGetInt(int(t.file.Fd()), unix.TIOCGPGRP)
	return err == nil && have == unix.Getpgrp()
}

func (t *terminal) give(group int) { unix.IoctlSetPointerInt(int(t.file.Fd()), unix.TIOCSPGRP, group) }

// hold makes us fit to give the terminal away and take it back, which a group in
// the background is stopped for (SIGTTOU) unless it ignores that. It reports
// whether the command is to be started with the terminal. release takes it back
// for good.
func (t *terminal) hold() (lend bool, release func()) {
	if t.group != foregroundGroup {
		return false, func() {}
	}
	t.lent = t.ours()
	signal.Ignore(unix.SIGTTOU)
	return t.lent, func() {
		t.takeBack()
		signal.Reset(unix.SIGTTOU)
	}
}

// takeBack leaves it where it is if it is not lent: in the background it is the
// shell's.
func (t *terminal) takeBack() {
	if t.lent {
		t.give(unix.Getpgrp())
		t.lent = false
	}
}

// stop takes the terminal back and stops us and the others of our group, so that
// the shell sees it.
func (t *terminal) stop() {
	if t.group == foregroundGroup {
		t.takeBack()
		unix.Kill(0, unix.SIGTSTP)
	}
}

// resume gives the terminal to the command's group, if the shell gave it to us.
func (t *terminal) resume(group int) {
	if t.group == foregroundGroup && !t.lent && t.ours() {
		t.give(group)
		t.lent = true
	}
}
