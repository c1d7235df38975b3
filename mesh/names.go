package mesh

import (
	"fmt"
	"regexp"
	"strings"
)

// ReservedApps are names an app must not have: `org` takes two orgs on one laptop
// apart, the others are somebody else's zones under internal that are forwarded.
var ReservedApps = []string{"org", "google", "compute", "c", "ec2", "docker", "host"}

// ReservedRegions are words that stand in front of an app's name in the DNS.
var ReservedRegions = []string{"all", "global", "regions", "vms", "vm", "process", "kv", "nearest", "of"}

var (
	label   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	topWord = regexp.MustCompile(`^top[0-9]+$`)
)

// CheckName reports whether s can name a thing of the given kind ("org", "app",
// "region", "host", "machine", "client"): an RFC 1123 label in lower case that no
// other use has taken.
func CheckName(kind, s string) error {
	switch {
	case !label.MatchString(s):
		return fmt.Errorf("%s name %q: use 1 to 63 of a-z, 0-9 and '-', with no '-' at either end", kind, s)
	case kind == "org" && s == AllOrgs:
		return fmt.Errorf("org name %q: the word stands for every org; choose another", s)
	case kind == "app" && contains(ReservedApps, s):
		return fmt.Errorf("app name %q: it is reserved (%s); choose another", s, strings.Join(ReservedApps, ", "))
	case kind == "region" && (contains(ReservedRegions, s) || topWord.MatchString(s)):
		return fmt.Errorf("region name %q: it has a meaning in DNS names (%s, top<N>); choose another", s, strings.Join(ReservedRegions, ", "))
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
