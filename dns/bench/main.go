// Command bench measures the mesh's name server against others on the same zone:
// queries per second of one core, CPU per query, and the time of an answer under
// load; and what changes of the zone cost, in time, in memory and to those who ask
// meanwhile. `make bench-dns` builds the rivals and runs it. It works in a network
// namespace of its own and leaves nothing behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	var c config
	serve := flag.String("serve", "", "be a `SERVER`: weft, changing or bare (for bench itself)")
	ask := flag.Bool("ask", false, "be the one who asks at a steady rate (for bench itself)")
	only := flag.String("only", "", "one `PART`: rate, latency or change")
	flag.StringVar(&c.coredns, "coredns", "", "the CoreDNS `PROGRAM`")
	flag.StringVar(&c.nsd, "nsd", "", "the NSD `PROGRAM`")
	flag.StringVar(&c.libs, "libs", "", "a `DIRECTORY` with NSD's libraries")
	flag.StringVar(&c.configs, "configs", "dns/bench", "the `DIRECTORY` with the rivals' configurations")
	flag.DurationVar(&c.length, "length", 4*time.Second, "how `LONG` one measurement takes")
	flag.IntVar(&c.rounds, "rounds", 3, "measurements of each server; the median counts")
	inside := flag.Bool("inside", false, "the namespace is there (for bench itself)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case *serve != "":
		err = serveUntil(ctx, *serve)
	case *ask:
		err = askSteadily(c.length)
	case !*inside:
		err = enter(ctx)
	default:
		err = c.run(ctx, *only)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// enter runs this program again in a network namespace that ends with it.
func enter(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"-inside"}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	return cmd.Run()
}

type config struct {
	coredns, nsd, libs, configs string
	length                      time.Duration
	rounds                      int
}

// server is one of those that are compared.
type server struct {
	name string
	args []string // its command
	env  []string
	// mixed: it can be asked all kinds of names, not only those of the common zone.
	mixed bool
}

// result is one measurement.
type result struct {
	perSecond float64 // queries answered
	perCore   float64 // queries answered per second of CPU that the server used
	p99       time.Duration
	memory    float64 // resident, MB
}

func (c config) run(ctx context.Context, only string) error {
	if runtime.NumCPU() < 2 {
		return fmt.Errorf("it takes two cores: one for the server, one for the load")
	}
	dir, err := os.MkdirTemp("", "weft-bench-dns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := prepare(dir, c.configs); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"rate", func() error { return c.rates(ctx, self, dir) }},
		{"latency", func() error { return c.latency(ctx, self) }},
		{"change", func() error { heap(); return changes(ctx, c.rounds) }},
	} {
		if only == "" || only == part.name {
			if err := part.run(); err != nil {
				return err
			}
		}
	}
	return nil
}

// rates compares how much the servers answer.
func (c config) rates(ctx context.Context, self, dir string) error {
	servers := []server{
		{name: "weft", args: []string{self, "-serve", "weft"}, mixed: true},
		{name: "bare", args: []string{self, "-serve", "bare"}},
	}
	if c.nsd != "" {
		servers = append(servers, server{name: "nsd", args: []string{c.nsd, "-d", "-c", dir + "/nsd.conf"}, env: []string{"LD_LIBRARY_PATH=" + c.libs}})
	}
	if c.coredns != "" {
		servers = append(servers, server{name: "coredns", args: []string{c.coredns, "-conf", dir + "/Corefile", "-quiet"}})
	}
	results := map[string][]result{}
	for range c.rounds {
		for _, s := range servers {
			for _, kind := range []string{"plain", "mixed"} {
				if kind == "mixed" && !s.mixed {
					continue
				}
				r, err := c.measure(ctx, s, dir, kind)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				results[s.name+" "+kind] = append(results[s.name+" "+kind], r)
			}
		}
	}
	report(results)
	return nil
}

// report prints the medians and the ratios.
func report(results map[string][]result) {
	median := func(key string, of func(result) float64) float64 {
		var all []float64
		for _, r := range results[key] {
			all = append(all, of(r))
		}
		if len(all) == 0 {
			return 0
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	perCore := func(r result) float64 { return r.perCore }
	var keys []string
	for key := range results {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		name := strings.ReplaceAll(key, " ", "_")
		figure("dns_"+name+"_per_core", median(key, perCore), "queries/s", "")
		figure("dns_"+name+"_answered", median(key, func(r result) float64 { return r.perSecond }), "queries/s", "")
		figure("dns_"+name+"_p99", median(key, func(r result) float64 { return float64(r.p99.Microseconds()) / 1000 }), "ms", "")
		figure("dns_"+name+"_memory", median(key, func(r result) float64 { return r.memory }), "MB", "")
	}
	own := median("weft plain", perCore)
	for _, x := range []struct{ name, aim string }{{"coredns", ">= 2.5"}, {"bare", ">= 1.4"}, {"nsd", ">= 1.0"}} {
		if other := median(x.name+" plain", perCore); other > 0 {
			figure("dns_vs_"+x.name, own/other, "ratio", x.aim)
		}
	}
	figure("dns_mixed_vs_plain", median("weft mixed", perCore)/own, "ratio", ">= 0.8")
}

func figure(name string, value float64, unit, aim string) {
	text := fmt.Sprintf("figure: %s %.4g %s", name, value, unit)
	if aim != "" {
		text += " (aim " + aim + ")"
	}
	fmt.Println(text)
}
