package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/weftmesh/weft/e2e/world"
)

// reached is what a client was given for a name, and who answered: the id of a
// machine; "" from a client that does not connect.
type reached struct {
	given []netip.Addr
	by    string
}

// stockClient resolves, and connects to, names on a machine.
type stockClient struct {
	name string
	run  func(ctx context.Context, s *stockWorld, on *world.Machine, names []string) (map[string]reached, error)
}

var stockClients = []stockClient{
	{"getent", viaGetent},
	{"Go", program(func(s *stockWorld) []string { return []string{filepath.Join(s.Bin(), "lookup"), "reach"} })},
	{"musl", program(func(s *stockWorld) []string { return []string{s.static} })},
	{"Node", program(func(s *stockWorld) []string { return []string{"node", s.script, "reach"} })},
	{"curl", viaCurl},
}

// program runs one that prints "name TAB given TAB page" for each name.
func program(command func(*stockWorld) []string) func(context.Context, *stockWorld, *world.Machine, []string) (map[string]reached, error) {
	return func(ctx context.Context, s *stockWorld, on *world.Machine, names []string) (map[string]reached, error) {
		out, err := on.In(ctx, append(command(s), names...)...)
		if err != nil {
			return nil, err
		}
		all := map[string]reached{}
		for line := range strings.Lines(out) {
			f := strings.Split(strings.TrimSpace(line), "\t")
			if len(f) != 3 {
				return nil, fmt.Errorf("it printed %q", line)
			}
			r, err := readReached(strings.Split(f[1], ","), f[2])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f[0], err)
			}
			all[f[0]] = r
		}
		return all, nil
	}
}

func readReached(given []string, page string) (r reached, err error) {
	for _, text := range given {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return r, fmt.Errorf("given %q, page %q: %w", given, page, err)
		}
		r.given = append(r.given, a)
	}
	var who struct{ Name string }
	if page != "" {
		if err := json.Unmarshal([]byte(page), &who); err != nil {
			return r, fmt.Errorf("given %v: %s", r.given, page)
		}
	}
	r.by = who.Name
	return r, nil
}

func viaGetent(ctx context.Context, _ *stockWorld, on *world.Machine, names []string) (map[string]reached, error) {
	all := map[string]reached{}
	for _, name := range names {
		out, err := on.In(ctx, "getent", "ahosts", name)
		if err != nil {
			return nil, err
		}
		var given []string
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 1 && f[1] == "STREAM" {
				given = append(given, f[0])
			}
		}
		if all[name], err = readReached(given, ""); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// viaCurl takes what curl was given from the addresses that it tried.
func viaCurl(ctx context.Context, _ *stockWorld, on *world.Machine, names []string) (map[string]reached, error) {
	all := map[string]reached{}
	for _, name := range names {
		out, err := on.In(ctx, "curl", "-sSv", "--stderr", "-", "--max-time", "5", "http://"+name+"/")
		if err != nil {
			return nil, err
		}
		var given []string
		page := ""
		for line := range strings.Lines(out) {
			if _, rest, ok := strings.Cut(line, "Trying "); ok {
				at, _, _ := strings.Cut(strings.TrimSuffix(strings.TrimSpace(rest), "..."), "]:")
				given = append(given, strings.TrimPrefix(at, "["))
			}
			if at := strings.Index(line, `{"name"`); at >= 0 {
				page = strings.TrimSpace(line[at:])
				page = page[:strings.IndexByte(page, '}')+1]
			}
		}
		if all[name], err = readReached(given, page); err != nil {
			return nil, err
		}
	}
	return all, nil
}
