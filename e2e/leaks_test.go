package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/e2e/churn"
	"github.com/weftmesh/weft/e2e/lab"
)

// leakBounds are how much more there may be of something than after the first round,
// at the same population. What is not named is exact: processes, links, routes, peers
// and what they may send, firewall rules and elements, files in the state directory and
// in /run.
var leakBounds = []churn.Bound{
	{Of: " controller goroutines", Share: 0.2, Plus: 12}, // as many as requests are under way
	{Of: " weft-controller run fds", Share: 0.2, Plus: 8},
	{Of: " goroutines", Share: 0.05, Plus: 5},
	{Of: " fds", Share: 0.05, Plus: 5},
	{Of: " threads", Share: 0.5, Plus: 8}, // the runtime keeps what it once needed
	{Of: " rss MiB", Share: 0.5, Plus: 24},
	{Of: " heap MiB", Share: 0.5, Plus: 16},
	{Of: " flows", Plus: 64}, // they end by time
	{Of: " sockets", Share: 0.2, Plus: 40},
	{Of: " controller files", Plus: 4}, // etcd's log goes on
}

// compare waits until nothing is in use that was not after the first round, but for
// the bounds: what is about to end gets a moment for it.
func (c *churned) compare(ctx context.Context, first churn.Census, round int) {
	var now churn.Census
	err := lab.Await(ctx, "nothing to have grown", 10*time.Second, func(ctx context.Context) error {
		seen, err := c.census(ctx)
		if err != nil {
			return err
		}
		now = seen
		if grown := churn.Grown(first, now, leakBounds); len(grown) > 0 {
			return errors.New(strings.Join(grown, "\n  "))
		}
		return nil
	})
	c.t.Logf("after round %d, at the same population: %s", round+1, summary(first, now))
	if err != nil {
		c.fail(err)
	}
}

// summary adds up over hosts what there was and what there is.
func summary(first, now churn.Census) string {
	sum := func(x churn.Census) map[string]float64 {
		out := map[string]float64{}
		for name, v := range x {
			_, what, _ := strings.Cut(name, " ")
			out[what] += v
		}
		return out
	}
	was, is := sum(first), sum(now)
	var parts []string
	for what := range is {
		parts = append(parts, fmt.Sprintf("%s %.0f -> %.0f", what, was[what], is[what]))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// census counts what is in use. Controllers are counted together: which of them a node
// follows is left to chance.
func (c *churned) census(ctx context.Context) (churn.Census, error) {
	out := churn.Census{}
	var errs []error
	for name, h := range c.w.Hosts {
		errs = append(errs, countProcesses(out, name, h.Host), countMetrics(ctx, out, name+" agent", h.Host, "127.0.0.1:9551"),
			countKernel(ctx, out, name, h.Host), countFiles(out, name+" state files", c.w.StateDir(name)))
	}
	for _, x := range c.w.Controllers {
		errs = append(errs, countProcesses(out, "all", x.Host), countMetrics(ctx, out, "all controller", x.Host, "127.0.0.1:9550"),
			countFiles(out, "all controller files", x.DataDir))
	}
	return out, errors.Join(errs...)
}

// countMetrics reads what a program says about its runtime.
func countMetrics(ctx context.Context, out churn.Census, name string, h *lab.Host, at string) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: h.DialContext}, Timeout: 5 * time.Second}
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+at+"/metrics", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("metrics of %s: %w", name, err)
	}
	defer resp.Body.Close()
	told := false
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		metric, text, _ := strings.Cut(lines.Text(), " ")
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			continue
		}
		switch metric {
		case "go_goroutines":
			out[name+" goroutines"] += v
			told = true
		case "go_memstats_heap_inuse_bytes":
			out[name+" heap MiB"] += v / (1 << 20)
		}
	}
	if !told {
		return fmt.Errorf("metrics of %s: no goroutines among them", name)
	}
	return nil
}

// countProcesses counts a host's processes by what they are, and what they hold.
func countProcesses(out churn.Census, name string, h *lab.Host) error {
	ours, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", h.Pid()))
	if err != nil {
		return err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		ns, err := os.Readlink(filepath.Join(dir, "ns/pid"))
		command, err2 := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || err2 != nil || ns != ours || len(command) == 0 {
			continue // of somebody else, or it has ended
		}
		args := strings.Split(string(command), "\x00")
		what := name + " " + filepath.Base(args[0])
		if len(args) > 1 && !strings.HasPrefix(args[1], "-") && strings.HasPrefix(filepath.Base(args[0]), "weft") {
			what += " " + args[1]
		}
		switch filepath.Base(args[0]) {
		case "sh", "sleep", "ip", "nft", "wg", "curl":
			continue // the lab's own
		}
		out[what+" processes"]++
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		out[what+" fds"] += float64(len(fds))
		status, _ := os.ReadFile(filepath.Join(dir, "status"))
		for line := range strings.Lines(string(status)) {
			key, rest, _ := strings.Cut(line, ":")
			v, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			switch key {
			case "Threads":
				out[what+" threads"] += v
			case "VmRSS":
				out[what+" rss MiB"] += v / 1024
			}
		}
	}
	return nil
}

// countKernel counts what is in the kernel for a host's data plane.
func countKernel(ctx context.Context, out churn.Census, name string, h *lab.Host) error {
	const script = `
echo links $(ip -o link | wc -l)
echo addresses $(ip -o -6 addr show scope global | wc -l)
echo routes $(ip -6 route show table all | grep -vc 'multicast\|^ff00')
echo peers $(wg show weft0 peers | wc -l)
echo allowed $(wg show weft0 allowed-ips | tr '\t' ' ' | wc -w)
echo flows $(cat /proc/sys/net/netfilter/nf_conntrack_count)
echo run-files $(find /run -mindepth 1 | wc -l)
echo sockets $(cat /proc/net/tcp6 /proc/net/udp6 /proc/net/raw6 | wc -l)
nft -j list ruleset`
	text, err := inPlane(ctx, h, "sh", "-c", script)
	if err != nil {
		return err
	}
	lines := bufio.NewReader(strings.NewReader(text))
	for range 8 {
		line, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("count what %s has in the kernel: %q: %w", name, text, err)
		}
		what, count, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, err := strconv.ParseFloat(count, 64)
		if err != nil {
			return fmt.Errorf("count the %s of %s: %q: %w", what, name, line, err)
		}
		out[name+" "+what] = v
	}
	return countRules(out, name, lines)
}

// countRules counts the firewall's rules and elements; those of sets that packets fill
// come and go.
func countRules(out churn.Census, name string, from io.Reader) error {
	var ruleset struct {
		Nftables []map[string]json.RawMessage `json:"nftables"`
	}
	if err := json.NewDecoder(from).Decode(&ruleset); err != nil {
		return fmt.Errorf("read the firewall of %s: %w", name, err)
	}
	for _, object := range ruleset.Nftables {
		if _, ok := object["rule"]; ok {
			out[name+" rules"]++
		}
		for _, kind := range []string{"set", "map"} {
			var set struct {
				Size int               `json:"size"` // nft names not all flags here: only what packets fill has one
				Elem []json.RawMessage `json:"elem"`
			}
			if json.Unmarshal(object[kind], &set) == nil && set.Size == 0 {
				out[name+" elements"] += float64(len(set.Elem))
			}
		}
	}
	return nil
}

// countFiles counts the files below a directory.
func countFiles(out churn.Census, name, dir string) error {
	return filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() {
			out[name]++
		}
		return err
	})
}
