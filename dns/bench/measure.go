package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weftmesh/weft/dns"
)

// with starts a server on the first core, calls f, and ends it.
func (c config) with(ctx context.Context, s server, f func(ctx context.Context, pid int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var log bytes.Buffer
	cmd := exec.CommandContext(ctx, "taskset", append([]string{"-c", "0"}, s.args...)...)
	cmd.Env = append(append(os.Environ(), "GOMAXPROCS=1"), s.env...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		cancel()
		<-ended
	}()
	if err := awaitAnswer(ctx, ended); err != nil {
		return fmt.Errorf("%w\n%s", err, log.String())
	}
	return f(ctx, cmd.Process.Pid)
}

// measure asks a server from the second core.
func (c config) measure(ctx context.Context, s server, dir, kind string) (r result, err error) {
	err = c.with(ctx, s, func(ctx context.Context, pid int) error {
		r, err = c.rate(ctx, pid, dir, kind)
		return err
	})
	return r, err
}

// rate asks the server that is there as much as it answers.
func (c config) rate(ctx context.Context, pid int, dir, kind string) (r result, err error) {
	if err := check(ctx); err != nil {
		return r, err
	}
	if _, err := c.load(ctx, dir, kind, time.Second); err != nil { // warm
		return r, err
	}
	pids := family(pid)
	before := cpuTime(pids)
	times := make(chan []time.Duration, 1)
	probing, stopProbing := context.WithCancel(ctx)
	go func() { times <- probe(probing) }()
	answered, err := c.load(ctx, dir, kind, c.length)
	stopProbing()
	took := <-times
	if err != nil {
		return r, err
	}
	used := cpuTime(pids) - before
	r.perSecond = answered / c.length.Seconds()
	r.perCore = answered / used.Seconds()
	r.memory = resident(pids)
	slices.Sort(took)
	if len(took) > 0 {
		r.p99 = took[len(took)*99/100]
	}
	return r, nil
}

var completed = regexp.MustCompile(`Queries completed:\s+(\d+)`)

// load asks for a while and returns how many queries were answered.
func (c config) load(ctx context.Context, dir, kind string, length time.Duration) (float64, error) {
	out, err := exec.CommandContext(ctx, "taskset", "-c", "1", "dnsperf", "-f", "inet6", "-s", serverAddr, "-p", strconv.Itoa(port), "-a", clientAddr,
		"-d", dir+"/"+kind, "-c", "8", "-T", "1", "-q", "256", "-l", fmt.Sprintf("%.0f", length.Seconds()), "-e").CombinedOutput()
	m := completed.FindSubmatch(out)
	if err != nil || m == nil {
		return 0, fmt.Errorf("dnsperf: %w\n%s", err, out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

func dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(clientAddr)}}
	return d.DialContext(ctx, network, to.String())
}

var at = netip.AddrPortFrom(netip.MustParseAddr(serverAddr), port)

func awaitAnswer(ctx context.Context, ended <-chan error) error {
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		select {
		case err := <-ended:
			return fmt.Errorf("it ended: %w", err)
		default:
		}
		one, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		r, err := dns.Lookup(one, dial, at, "app1.internal.", "AAAA")
		<-one.Done() // a refused query comes back at once: not more than five a second
		cancel()
		if err == nil && len(r.Answers) == 1 {
			return nil
		}
	}
	return fmt.Errorf("no answer")
}

// check asks for some of the names and compares the answers.
func check(ctx context.Context) error {
	for range 200 {
		i := rand.IntN(names)
		name := fmt.Sprintf("app%d.internal.", i)
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		r, err := dns.Lookup(one, dial, at, name, "AAAA")
		cancel()
		if err != nil {
			return err
		}
		if len(r.Answers) != 1 || r.Answers[0].Data != address(i).String() || r.Answers[0].TTL != 5 {
			return fmt.Errorf("%s: wrong answer: %v", name, r.Answers)
		}
	}
	return nil
}

// probe asks one question after the other and returns how long each took.
func probe(ctx context.Context) (took []time.Duration) {
	for ctx.Err() == nil {
		one, cancel := context.WithTimeout(ctx, time.Second)
		start := time.Now()
		_, err := dns.Lookup(one, dial, at, fmt.Sprintf("app%d.internal.", rand.IntN(names)), "AAAA")
		cancel()
		if err == nil {
			took = append(took, time.Since(start))
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
	return took
}

// family is a process and its children: some servers fork.
func family(pid int) []int {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pids[i], pids[i]))
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// cpuTime is what processes used of the processor, in the kernel too.
func cpuTime(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		// Nanoseconds on a processor are the first field; clock ticks are too coarse.
		dir := fmt.Sprintf("/proc/%d/task", pid)
		tasks, _ := os.ReadDir(dir)
		for _, t := range tasks {
			text, _ := os.ReadFile(dir + "/" + t.Name() + "/schedstat")
			if f := strings.Fields(string(text)); len(f) > 0 {
				n, _ := strconv.ParseInt(f[0], 10, 64)
				sum += time.Duration(n)
			}
		}
	}
	return sum
}

// resident is the memory of processes in MB.
func resident(pids []int) (sum float64) {
	for _, pid := range pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for _, line := range strings.Split(string(text), "\n") {
			if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				kb, _ := strconv.ParseFloat(strings.Fields(v)[0], 64)
				sum += kb / 1024
			}
		}
	}
	return sum
}
