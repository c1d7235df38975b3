package userspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// Durations of who looks after a process.
const (
	startPatience = 15 * time.Second // until a process that was started is ready
	askEvery      = time.Second      // whether it answers
	hungAfter     = 3 * time.Second  // without an answer
	endPatience   = 3 * time.Second  // until one that was told to end is killed
)

// RemoteConfig says which device is in a process of its own.
type RemoteConfig struct {
	Name      string        // of the link
	Plane     *netns.Handle // the namespace of the link; it may be closed after Attach
	Namespace string        // its name
	SocketDir string        // "": DefaultSocketDir
	// Command returns the command of a process that calls Serve for this link. Extra
	// file 3 is ProcessConfig.Ready.
	Command func() *exec.Cmd
	Log     *slog.Logger // nil: silent
	// Ended is called at most once, and not after Close or Release: the process has
	// ended or does not answer. nil: nobody is told. See Attach for another one.
	Ended func(why error)
}

// Remote is a device in a process of its own, which outlives this one. See
// peers.Device, and Attach.
type Remote struct {
	talker
	about  About
	found  bool
	hello  *hello
	ended  func(error)
	alive  context.Context // until the process is given up
	giveUp context.CancelCauseFunc
	wait   sync.WaitGroup

	mu   sync.Mutex
	over bool // guarded by mu, as is gone: closed or released
	gone bool // given up
}

var _ peers.Device = (*Remote)(nil)

// Attach finds the process of a device, of whatever version of the program, or else
// starts one, in a group of its own. One that cannot be used (it hangs, or its link
// is in an earlier namespace of that name) is ended first. The caller calls Close or
// Release.
//
// The errors are those of New. os.ErrExist: something else answers on the socket, or
// the process of another namespace.
func Attach(ctx context.Context, c RemoteConfig) (*Remote, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	plane, err := PlaneID(c.Plane)
	if err != nil {
		return nil, err
	}
	path := socketPath(c.SocketDir, c.Name)
	h, about, err := find(ctx, path)
	found := err == nil
	if found && about.Namespace != c.Namespace {
		h.close()
		return nil, fmt.Errorf("make the userspace device %s: %s: process %d answers, for namespace %s: %w", c.Name, path, about.Pid, about.Namespace, os.ErrExist)
	}
	if found {
		if why := about.usable(c.Name, plane); why != nil {
			c.Log.Warn("the device's process cannot be used, and is ended", "link", c.Name, "pid", about.Pid, "why", why)
			h.close()
			if found, err = false, end(path, about.Pid, unix.SIGTERM); err != nil {
				return nil, fmt.Errorf("make the userspace device %s: %w", c.Name, err)
			}
		}
	} else if err = c.makeRoom(path, about, err); err != nil {
		return nil, fmt.Errorf("make the userspace device %s: %w", c.Name, err)
	}
	if !found {
		if h, about, err = c.start(ctx, path); err == nil {
			if err = about.usable(c.Name, plane); err != nil {
				h.close()
			}
		}
		if err != nil {
			return nil, fmt.Errorf("make the userspace device %s: %w", c.Name, err)
		}
	}
	return newRemote(c, path, h, about, found), nil
}

// find asks who answers on a socket. os.ErrNotExist: nobody. Else, if it hangs, about
// has the process's id.
func find(ctx context.Context, path string) (*hello, About, error) {
	h, err := greet(ctx, path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, About{}, os.ErrNotExist
	}
	if err != nil {
		return nil, About{}, err
	}
	h.conn.patience = hungAfter
	about, err := h.ask()
	if err != nil {
		h.close()
		return nil, about, err
	}
	return h, about, nil
}

// Held reports whether the process of this device runs, of use or not: Attach takes it
// as it is, or ends it.
func Held(ctx context.Context, c RemoteConfig) bool {
	h, about, err := find(ctx, socketPath(c.SocketDir, c.Name))
	if err != nil {
		return errors.Is(err, os.ErrDeadlineExceeded) && c.serves(about.Pid)
	}
	h.close()
	return about.Namespace == c.Namespace
}

// End ends the process of this device, of whatever version, if its link is in the
// plane or it hangs. No process is not an error.
func End(ctx context.Context, c RemoteConfig) (ended bool, err error) {
	path, sig := socketPath(c.SocketDir, c.Name), unix.SIGTERM
	h, about, err := find(ctx, path)
	switch {
	case err == nil:
		h.close()
		plane, err := PlaneID(c.Plane)
		if err != nil || about.Plane != plane || about.Link != c.Name {
			return false, err
		}
	case !errors.Is(err, os.ErrDeadlineExceeded) || !c.serves(about.Pid):
		return false, nil // nobody, or somebody else
	default:
		sig = unix.SIGKILL
	}
	if err := end(path, about.Pid, sig); err != nil {
		return false, fmt.Errorf("end the userspace device %s: %w", c.Name, err)
	}
	return true, nil
}

// makeRoom ends what hangs where a process is to be. err is why find found none.
func (c RemoteConfig) makeRoom(path string, about About, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded) && c.serves(about.Pid):
		c.Log.Warn("the device's process does not answer, and is killed", "link", c.Name, "pid", about.Pid)
		return end(path, about.Pid, unix.SIGKILL)
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("%s: another process answers: %w", path, os.ErrExist)
	}
	return fmt.Errorf("%s: who answers there? %w", path, err)
}

// start starts a process and waits until it is ready.
func (c RemoteConfig) start(ctx context.Context, path string) (*hello, About, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, About{}, err
	}
	defer r.Close()
	cmd := c.Command()
	cmd.ExtraFiles = []*os.File{w}
	// A group of its own: no signal to this process's group reaches it, and of its
	// terminal's end it hears SIGHUP, which Serve's program ignores. Not a session: Linux
	// gives each a share of the processors (sched_autogroup), and a device that is always
	// let in before the machines' session starves them, where that is how they run.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, About{}, fmt.Errorf("start its process: %w", err)
	}
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		_ = cmd.Wait() // how it ended is in its log; whether, in hello
	}()
	if err := r.SetReadDeadline(time.Now().Add(startPatience)); err != nil {
		return nil, About{}, errors.Join(err, cmd.Process.Kill())
	}
	said, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err == nil {
		err = readyError(string(said))
	}
	if err != nil {
		_ = cmd.Process.Kill() // it may have ended
		<-reaped
		return nil, About{}, err
	}
	return find(ctx, path)
}

// readyError is what tellReady told.
func readyError(said string) error {
	word, text, _ := strings.Cut(strings.TrimSpace(said), " ")
	if word == "ready" {
		return nil
	}
	for _, w := range readyWords {
		if w.word == word && w.kind != nil {
			return &kindError{text, w.kind}
		}
	}
	if text == "" {
		return errors.New("its process ended before the device was ready; see its log")
	}
	return errors.New(text)
}

// kindError is the error of another process.
type kindError struct {
	text string
	kind error
}

func (e *kindError) Error() string { return e.text }
func (e *kindError) Unwrap() error { return e.kind }

func newRemote(c RemoteConfig, path string, h *hello, about About, found bool) *Remote {
	r := &Remote{about: about, found: found, hello: h, ended: c.Ended}
	r.alive, r.giveUp = context.WithCancelCause(context.Background())
	r.talker = talker{name: c.Name, path: path, ready: r.ready, alive: r.alive}
	r.wait.Go(r.ask)
	r.wait.Go(r.listen)
	return r
}

// About is what the process says of itself.
func (r *Remote) About() About { return r.about }

// Found reports whether the process was there before.
func (r *Remote) Found() bool { return r.found }

// ask asks the process again and again who it is, only to hear that it answers.
func (r *Remote) ask() {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.alive.Done():
			return
		case <-tick.C:
			_, _ = r.hello.conn.Write(aboutRequest) // listen hears what is wrong
		}
	}
}

// listen hears the answers. Silence for hungAfter is no proof that the process hangs:
// this one may have stood still. Attach asks once more before it kills.
func (r *Remote) listen() {
	for {
		if _, err := parseAbout(r.hello.in); err != nil {
			r.lost(err)
			return
		}
	}
}

// lost gives the process up.
func (r *Remote) lost(err error) {
	why := fmt.Errorf("process %d of %s has ended: %w", r.about.Pid, r.name, peers.ErrClosed)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		why = fmt.Errorf("process %d of %s does not answer: %w", r.about.Pid, r.name, peers.ErrClosed)
	}
	r.mu.Lock()
	over := r.over
	if !over {
		r.gone = true
		r.giveUp(why)
	}
	r.mu.Unlock()
	if !over && r.ended != nil {
		r.ended(why)
	}
}

func (r *Remote) ready(ctx context.Context) error {
	if err := context.Cause(r.alive); err != nil {
		return err
	}
	return ctx.Err()
}

// Release lets go of the process, which goes on with its tunnels. The device is as
// closed for whoever had it.
func (r *Remote) Release() error { return r.leave(func() error { return nil }) }

// Close implements peers.Device: it ends the process. One that was given up is left
// alone: that this program was not answered may be its own fault, and Attach asks
// again.
func (r *Remote) Close() error {
	return r.leave(func() error { return end(r.path, r.about.Pid, unix.SIGTERM) })
}

func (r *Remote) leave(first func() error) error {
	r.mu.Lock()
	over, gone := r.over, r.gone
	r.over = true
	r.giveUp(peers.ErrClosed)
	r.mu.Unlock()
	if over {
		return nil
	}
	var err error
	if !gone {
		err = first()
	}
	r.hello.close()
	r.wait.Wait()
	return err
}
