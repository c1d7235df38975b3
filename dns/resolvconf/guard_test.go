package resolvconf

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// childConfig is the configuration that up and guard share with the test.
func childConfig() Config {
	root := os.Getenv("RESOLVCONF_TEST_ROOT")
	return Config{
		Link: "weft0", Index: 7, Server: netip.MustParseAddr("fd12:3456:789a:1::3"), Domains: []string{"internal."},
		StateDir: filepath.Join(root, "var/lib/weft"), Root: root, Owner: "up-1",
		Stub: func(string) (netip.AddrPort, error) { return netip.MustParseAddrPort(stubAt), nil },
	}
}

// up sets the resolver under a guard and waits to be killed.
func up() {
	guard := exec.Command(os.Args[0])
	guard.Env = append(os.Environ(), "RESOLVCONF_TEST_AS=guard")
	release, err := StartGuard(guard)
	if err == nil {
		var restore Restore
		if restore, _, err = Set(context.Background(), childConfig()); err == nil {
			var line string
			fmt.Scanln(&line) // "down", or for ever
			if _, err = restore(context.Background()); err == nil {
				err = release()
			}
		}
	}
	fmt.Fprintln(os.Stderr, "up:", err)
}

// The process is killed, nobody runs `down`: the guard puts the file back.
func TestGuard(t *testing.T) {
	for _, killed := range []bool{true, false} {
		t.Run(fmt.Sprintf("killed %v", killed), func(t *testing.T) {
			cfg := config(t)
			cfg.write(t, resolvConf, original)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "RESOLVCONF_TEST_AS=up", "RESOLVCONF_TEST_ROOT="+cfg.Root)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the file to be set", func() bool { return strings.HasPrefix(cfg.read(t, resolvConf), header) })
			if killed {
				cmd.Process.Kill()
			} else {
				fmt.Fprintln(stdin, "down")
			}
			cmd.Wait()
			waitFor(t, "the file to be restored", func() bool { return cfg.read(t, resolvConf) == original })
			waitFor(t, "the state to go", func() bool { _, err := os.Stat(cfg.statePath()); return err != nil })
		})
	}
}
