package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
)

// step is one block of commands in README, and where to type it.
type step struct {
	places     []string
	background bool
	commands   []string
}

// readmeSteps reads the blocks that a comment `<!-- on PLACE… [in the background] -->`
// stands before.
func readmeSteps(t *testing.T) []step {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []step
	for _, m := range regexp.MustCompile("(?s)<!-- on ([a-z0-9 ]+?)( in the background)? -->\n```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		out = append(out, step{strings.Fields(m[1]), m[2] != "", strings.Split(strings.TrimSpace(m[3]), "\n")})
	}
	return out
}

// The commands of "On your own three servers" are typed, as written, on three
// servers and a laptop.
func TestReadmeOnThreeServers(t *testing.T) {
	need(t, "bash", "curl", "dig", "python3", "nsenter")
	t.Parallel()
	steps := readmeSteps(t)
	if len(steps) < 8 {
		t.Fatalf("README has %d blocks with a place", len(steps))
	}
	l := newLab(t)
	places := map[string]*lab.Host{}
	var addresses []string
	for i, name := range []string{"server1", "server2", "server3", "laptop"} {
		// A server's tunnels outlive its agent, as they do when that is upgraded.
		h, err := l.Host(name, lab.HostConfig{PrivateEtc: true, Daemons: []string{"weft-agent device "}})
		if err != nil {
			t.Fatal(err)
		}
		// Each server has a disk of its own.
		if _, err := h.Run(t.Context(), "mount", "-t", "tmpfs", "tmpfs", "/var/lib"); err != nil {
			t.Fatal(err)
		}
		places[name] = h
		addresses = append(addresses, fmt.Sprintf("192.0.2.%d", 11+i), h.Addr().String())
	}
	yours := strings.NewReplacer(append(addresses, "sudo ", "")...) // everybody is root here
	// typed is a command as a person types it into a shell there, in the home
	// directory, "put your own addresses" done.
	typed := func(command string) []string {
		return []string{"-ec", "PATH=" + bin(t) + ":$PATH; " + yours.Replace(command)}
	}
	shell := func(ctx context.Context, place, command string) (string, error) {
		return places[place].Run(ctx, "bash", typed(command)...)
	}
	for _, s := range steps {
		for _, place := range s.places {
			for _, command := range s.commands {
				t.Logf("%s$ %s", place, command)
				if strings.HasPrefix(command, "weft run") {
					await(t, "the agent of "+place+" to have joined", 10*time.Second, func(ctx context.Context) error {
						_, err := shell(ctx, place, "weft status")
						return err
					})
				}
				if s.background {
					_, err := places[place].Start("typed", "bash", typed("exec "+command), nil)
					if err != nil {
						t.Fatal(err)
					}
					continue
				}
				// A person waits a moment for what was started before.
				await(t, place+"$ "+command, 15*time.Second, func(ctx context.Context) error {
					out, err := shell(ctx, place, command)
					if err == nil && out != "" {
						t.Logf("%s", out)
					}
					if err == nil && strings.Contains(command, "http://web.internal/") && !strings.Contains(out, "Directory listing") {
						err = fmt.Errorf("the page is not web's: %q", out)
					}
					if err == nil && strings.HasPrefix(command, "weft machine list") && strings.Count(out, " web ") != 2 {
						err = fmt.Errorf("these are not the two machines:\n%s", out)
					}
					return err
				})
				for _, file := range []string{"host.token", "laptop.token"} {
					if strings.HasSuffix(command, "> "+file) {
						copyFile(t, places, file)
					}
				}
			}
		}
	}
}

// copyFile is README's "copy it to each server".
func copyFile(t *testing.T, places map[string]*lab.Host, name string) {
	t.Helper()
	text, err := os.ReadFile(home(places["server1"], name))
	if err != nil {
		t.Fatal(err)
	}
	for place, h := range places {
		if place == "server1" {
			continue
		}
		if err := os.WriteFile(home(h, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// home is a file in the home directory of a host.
func home(h *lab.Host, name string) string { return filepath.Join(h.Dir(), "home", name) }
