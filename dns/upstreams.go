package dns

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// ResolvConf is what a resolv.conf file says (resolv.conf(5)). Lines that are not
// understood are skipped, as C libraries do.
type ResolvConf struct {
	Nameservers []netip.AddrPort // in order, port 53
	Search      []string         // the last search or domain line
	Options     []string         // of all options lines
}

// ParseResolvConf reads the text of a resolv.conf file.
func ParseResolvConf(text []byte) ResolvConf {
	var c ResolvConf
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		line := lines.Text()
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				c.Nameservers = append(c.Nameservers, netip.AddrPortFrom(a, 53))
			}
		case "search", "domain":
			c.Search = fields[1:]
		case "options":
			c.Options = append(c.Options, fields[1:]...)
		}
	}
	return c
}

// Upstreams returns a function that says which nameservers the resolv.conf at path
// lists, for ForwarderConfig. The file is read again when it has changed, so a
// laptop that moves to another network needs nothing else. While the file cannot
// be read the last list holds.
func Upstreams(path string) func() []netip.AddrPort {
	var (
		mu   sync.Mutex
		seen os.FileInfo
		when time.Time
		list []netip.AddrPort
	)
	return func() []netip.AddrPort {
		mu.Lock()
		defer mu.Unlock()
		if !when.IsZero() && time.Since(when) < time.Second/4 {
			return slices.Clone(list)
		}
		when = time.Now()
		now, err := os.Stat(path)
		if err != nil || seen != nil && os.SameFile(seen, now) && seen.ModTime().Equal(now.ModTime()) && seen.Size() == now.Size() {
			return slices.Clone(list)
		}
		if text, err := os.ReadFile(path); err == nil {
			seen, list = now, ParseResolvConf(text).Nameservers
		}
		return slices.Clone(list)
	}
}
