package main

import (
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/peers/userspace"
)

// deviceCommand is for the agent alone, which starts it: see deviceProcess.
func deviceCommand() *cobra.Command {
	var c userspace.ProcessConfig
	var log *cli.Log
	var ready bool
	cmd := &cobra.Command{
		Use: "device", Short: "Hold the userspace WireGuard device; the agent starts this", Args: cli.Args(), Hidden: true,
		Long: `Hold the userspace WireGuard device of a host, so that its tunnels outlive the agent.
"weft-agent run" starts this where the kernel has no WireGuard, in a group of its
own, and finds it again after a restart, also of another version. It is configured
over LINK.sock in --uapi-dir alone, as wg(8) would do it.

It ends when "weft-agent clean" tells it to, on SIGTERM, and by itself when that
socket, the link or the namespace is removed. A systemd unit of the agent needs
KillMode=process: otherwise stopping the agent ends this, too.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// What the agent's terminal or its reader of logs does is not for this process.
			signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
			c.Version = cli.VersionText()
			c.Log = log.Logger(cmd.ErrOrStderr())
			if ready {
				c.Ready = os.NewFile(3, "ready")
			}
			userspace.Tune()
			return userspace.Serve(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Name, "link", "weft0", "the WireGuard `LINK`")
	f.StringVar(&c.Namespace, "namespace", "weft", "network `NAMESPACE` of the link")
	f.StringVar(&c.SocketDir, "uapi-dir", userspace.DefaultSocketDir, "where its control socket is: `DIR`")
	f.IntVar(&c.MTU, "mtu", 0, "`BYTES` of the link")
	f.BoolVar(&ready, "tell-ready", false, "say on file 3 whether it is there")
	log = cli.AddLog(f)
	return cmd
}

// logFlags are the flags by which a command logs as cmd does.
func logFlags(cmd *cobra.Command) (args []string) {
	for _, name := range []string{"log-format", "log-level"} {
		if f := cmd.Flag(name); f != nil {
			args = append(args, "--"+name, f.Value.String())
		}
	}
	return args
}

// deviceProcess returns the command line of deviceCommand, with the log flags of this
// process. Settings of the agent in the environment are not for it.
func deviceProcess(c userspace.ProcessConfig, logFlags []string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0] // exec says what is wrong with it
	}
	args := []string{"device", "--link", c.Name, "--namespace", c.Namespace, "--mtu", strconv.Itoa(c.MTU), "--tell-ready"}
	if c.SocketDir != "" {
		args = append(args, "--uapi-dir", c.SocketDir)
	}
	cmd := exec.Command(exe, append(args, logFlags...)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "WEFT_") })
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	return cmd
}
