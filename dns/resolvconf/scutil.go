package resolvconf

import (
	"context"
	"fmt"
	"strings"
)

// scutil is macOS's way where /etc/resolver cannot be written: a supplemental
// resolver in the dynamic store, which ends with the system's run (scutil(8)).
type scutil struct{}

const scutilProgram = "/usr/sbin/scutil"

func scutilKey(link string) string { return "State:/Network/Service/weft-" + link + "/DNS" }

// scutilSet is what scutil is told. Its values are words, and "*" starts a list.
func scutilSet(cfg Config) string {
	domains := make([]string, len(cfg.Domains))
	for i, d := range cfg.Domains {
		domains[i] = bare(d)
	}
	return strings.Join([]string{
		"d.init",
		"d.add ServerAddresses * " + cfg.Server.String(),
		"d.add SupplementalMatchDomains * " + strings.Join(domains, " "),
		"d.add SupplementalMatchDomainsNoSearch # 1", // not a search list
		"set " + scutilKey(cfg.Link),
		"quit", "",
	}, "\n")
}

func (scutil) set(ctx context.Context, cfg Config, st *state) error {
	if strings.ContainsAny(cfg.Link, " \t\n") || cfg.Link == "" {
		return fmt.Errorf("link %q is no name", cfg.Link)
	}
	st.Link = cfg.Link
	if err := cfg.save(st); err != nil {
		return err
	}
	_, err := cfg.run(ctx, scutilSet(cfg), scutilProgram)
	return err
}

func (scutil) revert(ctx context.Context, cfg Config, st *state) (note string, err error) {
	if st.Link == "" { // nothing was begun
		return "", nil
	}
	_, err = cfg.run(ctx, "remove "+scutilKey(st.Link)+"\nquit\n", scutilProgram)
	return "", err
}
