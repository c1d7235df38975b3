package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// laptop is what the flags of `weft up` say.
type laptop struct {
	agent.LaptopConfig
	token   string
	disable []string
	log     *cli.Log
}

func upCommand() *cobra.Command {
	var l laptop
	cmd := &cobra.Command{
		Use: "up", Short: "Join this laptop to its org", Args: cli.Args(),
		Long: `Join this laptop to its org, through the nearest host that can be a gateway, and make
names under internal. work. It stays in the foreground until Ctrl-C or "weft down";
with --background it returns when the tunnel is up. The resolver is put back at the
end, also after a crash.

The first time it needs a token ("weft token create --kind client --org ORG") and the
address of a controller; from then on everything is in --state-dir.`,
		Example: `  sudo weft up --controller https://203.0.113.1:7443 --token-file laptop.token
  sudo weft up --background`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if background, _ := cmd.Flags().GetBool("background"); background {
				return upInBackground(cmd, l)
			}
			return up(cmd, l)
		},
	}
	f := cmd.PersistentFlags()
	f.StringSliceVar(&l.Controllers, "controller", nil, "where the controllers are: `URLS`; needed until this laptop has joined")
	f.StringVar(&l.token, "token", "", "the join `TOKEN`; needed until this laptop has joined. Others can see it in the list of processes: better WEFT_TOKEN or --token-file")
	f.StringVar(&l.TokenFile, "token-file", "", "the `FILE` that holds the join token")
	f.StringVar(&l.Name, "name", "", "of this laptop in its org: `NAME` (default: the computer's name up to the first dot)")
	f.StringVar(&l.StateDir, "state-dir", "/var/lib/weft/laptop", "where keys, certificate and last orders are kept: `DIR`")
	f.StringVar(&l.Socket, "socket", local.LaptopSocket, "where \"weft status\" and \"weft down\" find it: `SOCKET`")
	f.StringVar(&l.Gateway, "gateway", "", "the `HOST` to go through (default: the nearest, measured)")
	f.BoolVar(&l.NoDNS, "no-dns", false, "leave this laptop's resolver alone")
	f.StringVar(&l.Link, "link", "weft0", "the WireGuard `LINK`")
	f.StringVar(&l.SocketDir, "uapi-dir", "/var/run/wireguard", "where wg(8) finds the link's control socket: `DIR`")
	f.Uint16Var(&l.Port, "listen-port", 0, "WireGuard's UDP `PORT` (default: any)")
	f.Uint16Var(&l.ProbePort, "probe-port", 0, "UDP `PORT` of the probes, the same in the whole mesh (default 51821)")
	f.IntVar(&l.MTU, "mtu", 0, "`BYTES` of the link (default: as the underlay allows, at most 1420)")
	f.StringSliceVar(&l.disable, "disable", nil, "switch mechanisms off, for fault injection")
	f.Lookup("disable").Hidden = true
	l.log = cli.AddLog(f)
	cmd.Flags().Bool("background", false, "return when the tunnel is up, and stay up")
	cmd.Flags().Duration("timeout", 30*time.Second, "with --background: how `LONG` to wait for that")
	return cmd
}

func up(cmd *cobra.Command, l laptop) error {
	l.Token = enroll.NewSecret(l.token)
	l.Version = cli.VersionText()
	l.Log = l.log.Logger(cmd.ErrOrStderr())
	l.Guard = l.guard
	l.Disable = map[string]bool{}
	for _, name := range l.disable {
		l.Disable[name] = true
	}
	if err := l.canJoin(cmd.Context()); err != nil {
		return err
	}
	return cli.Missing(agent.RunLaptop(cmd.Context(), l.LaptopConfig), l.TokenFile)
}

// canJoin gives up if this laptop has to join and no controller answers: somebody
// sits in front of it. One that has joined goes on with what it knows. All other
// mistakes are left to RunLaptop to tell.
func (l laptop) canJoin(ctx context.Context) error {
	_, err := enroll.Identity{Dir: l.StateDir}.Load()
	if !errors.Is(err, fs.ErrNotExist) || len(l.Controllers) == 0 {
		return nil
	}
	text := []byte(l.token)
	if l.token == "" {
		if text, err = os.ReadFile(l.TokenFile); err != nil {
			return nil
		}
	}
	token, err := enroll.ParseToken(string(text))
	if err != nil {
		return nil
	}
	client, err := api.New(api.Config{Servers: l.Controllers, TLS: enroll.ClientTLS(enroll.ClientConfig{Pin: token.Pin})})
	if err != nil {
		return cli.WithCode(err, cli.CodeUsage)
	}
	defer client.Close()
	if err := client.Do(ctx, "GET", "/v1/mesh", nil, nil); errors.Is(err, api.ErrUnreachable) {
		return fmt.Errorf("join with token %s: %w", token.ID, err)
	}
	return nil
}

// guard is the helper that puts the resolver back if this process is killed: this
// program again, see guardCommand.
func (l laptop) guard(owner string) *exec.Cmd {
	return exec.Command("/proc/self/exe", "resolver-guard", "--state-dir", l.StateDir, "--link", l.Link, "--name", "guard", "--owner", owner)
}

func guardCommand() *cobra.Command {
	var l laptop
	var owner string
	cmd := &cobra.Command{
		Use: "resolver-guard", Short: "Wait for the end of \"weft up\" and put the resolver back", Hidden: true, Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l.Log = l.log.Logger(cmd.ErrOrStderr())
			return agent.GuardLaptop(context.WithoutCancel(cmd.Context()), cmd.InOrStdin(), l.LaptopConfig, owner)
		},
	}
	f := cmd.Flags()
	f.StringVar(&l.StateDir, "state-dir", "", "")
	f.StringVar(&l.Link, "link", "", "")
	f.StringVar(&l.Name, "name", "", "")
	f.StringVar(&owner, "owner", "", "")
	l.log = cli.AddLog(f)
	return cmd
}

// upInBackground starts this command again, without --background and apart from
// the terminal, and waits until it says on its socket that it is connected to a
// gateway.
func upInBackground(cmd *cobra.Command, l laptop) error {
	timeout, _ := cmd.Flags().GetDuration("timeout")
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	client := local.Client{Socket: l.Socket}
	if s, err := client.Status(ctx); err == nil {
		return mesh.WithHint(fmt.Errorf("up: it is up already, as %s", s.Node), "weft status; weft down")
	}
	if err := os.MkdirAll(l.StateDir, 0o700); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	path := filepath.Join(l.StateDir, "up.log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("up: %w", err)
	}
	defer log.Close()
	child := exec.Command("/proc/self/exe", again(cmd)...)
	child.Args[0] = os.Args[0]
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	s, err := untilUp(ctx, client, !l.NoDNS, ended)
	switch {
	case errors.Is(err, errEnded):
		// What it had to say, it said with its own name and hints.
		text, _ := os.ReadFile(path)
		cmd.ErrOrStderr().Write(text)
		return cli.Exit(max(child.ProcessState.ExitCode(), cli.CodeFailed))
	case err != nil:
		child.Process.Signal(syscall.SIGTERM)
		<-ended
		return mesh.WithHint(fmt.Errorf("up: %w", err), "%s says more", path)
	}
	for _, p := range s.Problems {
		cli.Notef(cmd, "warning: %s", p)
	}
	cli.Notef(cmd, "up as %s (%s), through %s; its log is %s; to end it: weft down", s.Node, s.Address, s.Gateway, path)
	return nil
}

// again is the command line of the process in the background: all that was set,
// wherever it came from, but for the token, which goes by the environment.
func again(cmd *cobra.Command) []string {
	args := []string{"up"}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		switch f.Name {
		case "background", "timeout", "config", "output", "context":
			return
		case "token":
			os.Setenv(cli.Env(f.Name), f.Value.String())
			return
		}
		if !f.Changed {
			return
		}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			for _, v := range list.GetSlice() {
				args = append(args, "--"+f.Name+"="+v)
			}
			return
		}
		args = append(args, "--"+f.Name+"="+f.Value.String())
	})
	return args
}

var errEnded = errors.New("it ended")

// untilUp asks on the socket until the laptop is connected.
func untilUp(ctx context.Context, client local.Client, names bool, ended <-chan error) (local.Status, error) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return local.Status{}, errors.New("no gateway answered in time")
		case <-ended:
			return local.Status{}, errEnded
		case <-ticker.C:
		}
		if s, err := client.Status(ctx); err == nil && isUp(s, names) {
			return s, nil
		}
	}
}

// isUp reports whether a gateway has answered through the tunnel and, with names,
// the resolver has been set; what cannot be is among the problems.
func isUp(s local.Status, names bool) bool {
	for _, p := range s.Peers {
		if p.Name == "host/"+s.Gateway && !p.LastHandshake.IsZero() {
			return !names || s.DNS != "" || len(s.Problems) > 0
		}
	}
	return false
}

func downCommand() *cobra.Command {
	var l laptop
	cmd := &cobra.Command{
		Use: "down", Short: "Take this laptop out, and put its resolver back", Args: cli.Args(),
		Long: `Take this laptop out of its org, and put its resolver back. If "weft up" does not run
any more because it was killed, what it left is put back.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			process, err := processAt(l.Socket)
			if err == nil {
				defer process.Close()
				err = local.Client{Socket: l.Socket}.Down(cmd.Context())
			}
			if err == nil {
				return untilEnd(cmd.Context(), process)
			}
			if !errors.Is(err, local.ErrNotRunning) || errors.Is(err, os.ErrPermission) {
				return err
			}
			l.Log = l.log.Logger(cmd.ErrOrStderr())
			if recovered := agent.RecoverLaptop(cmd.Context(), l.LaptopConfig); recovered != nil {
				return fmt.Errorf("down: %w", recovered)
			}
			cli.Notef(cmd, "it was not up; what it may have left is put back")
			return nil
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&l.Socket, "socket", local.LaptopSocket, "the `SOCKET` of \"weft up\"")
	f.StringVar(&l.StateDir, "state-dir", "/var/lib/weft/laptop", "what \"weft up\" was given: `DIR`")
	f.StringVar(&l.Link, "link", "weft0", "what \"weft up\" was given: `LINK`")
	l.log = cli.AddLog(f)
	return cmd
}

// processAt is a handle (pidfd) of the process that listens on a unix socket.
func processAt(socket string) (*os.File, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%s: %w (%w)", socket, local.ErrNotRunning, errors.Unwrap(err))
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	var fd int
	var fdErr error
	err = raw.Control(func(c uintptr) {
		var who *unix.Ucred
		if who, fdErr = unix.GetsockoptUcred(int(c), unix.SOL_SOCKET, unix.SO_PEERCRED); fdErr == nil {
			fd, fdErr = unix.PidfdOpen(int(who.Pid), 0)
		}
	})
	if err = errors.Join(err, fdErr); err != nil {
		return nil, fmt.Errorf("%s: find the process that listens: %w", socket, err)
	}
	return os.NewFile(uintptr(fd), socket), nil
}

// untilEnd waits until a process has ended: only then has it put everything back.
func untilEnd(ctx context.Context, process *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		poll := []unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("down: wait for the end of \"weft up\": %w", err)
		}
	}
	return errors.New("down: \"weft up\" has not ended; its log says why")
}
