package resolvconf

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// nrpt is Windows' way: one rule of the name resolution policy table ([MS-GPNRPT]),
// a key in the registry, which names the domains and the server. Everything is under
// HKEY_LOCAL_MACHINE.
type nrpt struct{}

const (
	nrptLocal = `SYSTEM\CurrentControlSet\Services\Dnscache\Parameters\DnsPolicyConfig`
	// nrptPolicy has the rules of group policy. Where there is one, the local rules
	// are passed over, so ours has to be in both.
	nrptPolicy = `SOFTWARE\Policies\Microsoft\Windows NT\DNSClient\DnsPolicyConfig`
)

// registry is the part of the registry that is needed. A path of what is not there
// is no error for Delete.
type registry interface {
	Exists(path string) (bool, error)
	Read(path string) (rule nrptRule, ok bool, err error)
	Write(path string, rule nrptRule) error
	Delete(path string) error
	// Refresh makes the system read its rules again. policy: those of group policy too.
	Refresh(policy bool) error
}

// nrptRule is a rule's values. Version and ConfigOptions are always the same: 1, and
// 8 for "has its own servers".
type nrptRule struct {
	Names   []string // each with a leading dot: the domain and all below it
	Servers string
}

const (
	nrptVersion    = 1
	nrptOwnServers = 8
)

// nrptRuleOf is the rule for a configuration.
func nrptRuleOf(cfg Config) nrptRule {
	r := nrptRule{Servers: cfg.Server.String()}
	for _, d := range cfg.Domains {
		r.Names = append(r.Names, "."+bare(d))
	}
	return r
}

func (r nrptRule) equal(s nrptRule) bool {
	return slices.Equal(r.Names, s.Names) && r.Servers == s.Servers
}

// check refuses what would be read as something else.
func (r nrptRule) check() error {
	if _, err := netip.ParseAddr(r.Servers); err != nil {
		return err
	}
	if i := slices.IndexFunc(r.Names, func(n string) bool { return len(n) < 2 }); i >= 0 {
		return fmt.Errorf("domain %q is everything", r.Names[i])
	}
	return nil
}

// nrptKey is the name of a link's rule, a GUID (RFC 9562, version 8) that is the same
// each time, so that a rule that was left behind is found again.
func nrptKey(link string) string {
	h := sha256.Sum256([]byte("weft " + link))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	return fmt.Sprintf("{%x-%x-%x-%x-%x}", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// nrptPlan returns where the rule belongs.
func nrptPlan(link string, policy bool) []string {
	keys := []string{nrptLocal + `\` + nrptKey(link)}
	if policy {
		keys = append(keys, nrptPolicy+`\`+nrptKey(link))
	}
	return keys
}

func (nrpt) set(_ context.Context, cfg Config, st *state) error {
	reg, rule := cfg.registry, nrptRuleOf(cfg)
	if reg == nil {
		reg = systemRegistry()
	}
	if err := rule.check(); err != nil {
		return err
	}
	policy, err := reg.Exists(nrptPolicy)
	if err != nil {
		return err
	}
	keys := nrptPlan(cfg.Link, policy)
	for _, k := range keys {
		if !slices.Contains(st.Keys, k) {
			st.Keys = append(st.Keys, k)
		}
	}
	if err := cfg.save(st); err != nil {
		return err
	}
	changed := false
	for _, k := range keys {
		if have, ok, err := reg.Read(k); err == nil && ok && have.equal(rule) {
			continue
		}
		if err := reg.Write(k, rule); err != nil {
			return fmt.Errorf("write %s: %w", k, err)
		}
		changed = true
		cfg.log().Info("resolver set", "key", k)
	}
	if !changed {
		return nil
	}
	return reg.Refresh(policy)
}

func (nrpt) revert(_ context.Context, cfg Config, st *state) (note string, err error) {
	if len(st.Keys) == 0 { // nothing was begun
		return "", nil
	}
	reg := cfg.registry
	if reg == nil {
		reg = systemRegistry()
	}
	var errs []error
	for _, k := range st.Keys {
		if err := reg.Delete(k); err != nil {
			errs = append(errs, fmt.Errorf("delete %s: %w", k, err))
		}
	}
	policy, err := reg.Exists(nrptPolicy)
	return "", errors.Join(append(errs, err, reg.Refresh(policy))...)
}
