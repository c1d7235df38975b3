package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
)

// A tunnelled joins two hosts by its device, one process on each.
type tunnelled struct {
	name  string
	start func(t *testing.T, h *lab.Host, number int, other netip.Addr) *lab.Process
}

var tunnels = []tunnelled{
	{"plain", func(t *testing.T, h *lab.Host, number int, other netip.Addr) *lab.Process {
		return startWireGuard(t, h, filepath.Join(bin(t), "wireguard-go"), number, other)
	}},
	{"ours", startDevice},
	{"nebula", startNebula},
	{"tailscale", func(t *testing.T, h *lab.Host, number int, other netip.Addr) *lab.Process {
		return startWireGuard(t, h, filepath.Join(rivals(t), "tailscale-wireguard-go"), number, other)
	}},
}

// Our device against others: the plain wireguard-go program of the same version,
// nebula, and tailscale's fork of wireguard-go (tailscaled itself wants a control
// server). Two namespaces joined by a veth, IPv6 between them, both ends on this
// machine; rounds alternate. WEFT_TUNNELS names some ("ours,plain"), WEFT_ROUNDS
// says how many rounds, WEFT_SECONDS how long each measurement takes.
//
//	a [tunnel .1] ~ [veth0 fd77::1] --- [veth0 fd77::2] ~ [tunnel .2] b
func TestBenchTunnels(t *testing.T) {
	benchmark(t, "iperf3", "wg", "ping")
	chosen := tunnels
	if names := os.Getenv("WEFT_TUNNELS"); names != "" {
		chosen = slices.DeleteFunc(slices.Clone(tunnels), func(d tunnelled) bool {
			return !slices.Contains(strings.Split(names, ","), d.name)
		})
	}
	rounds, seconds := number(t, "WEFT_ROUNDS", 3), number(t, "WEFT_SECONDS", 4)
	taken := map[string][]tunnelSample{}
	for range rounds {
		for _, d := range chosen {
			taken[d.name] = append(taken[d.name], measureTunnel(t, d, seconds))
		}
	}
	for _, m := range tunnelMeasures {
		plain := median(taken["plain"], m.of)
		for _, d := range chosen {
			value, aim := median(taken[d.name], m.of), ""
			if d.name == "ours" {
				aim = m.aim
			}
			figure("tunnel_"+m.name+"_"+d.name, value, m.unit, aim)
			if d.name != "plain" && plain > 0 {
				aim = ""
				if d.name == "ours" {
					aim = m.ratio
				}
				figure("tunnel_"+m.name+"_"+d.name+"_ratio", value/plain, "x", aim)
			}
		}
	}
}

// tunnelSample is what one round found out about one tunnel.
type tunnelSample struct {
	tcp1, tcp4         float64 // Gbit/s
	gigabyte           float64 // CPU of both ends per gigabyte of one stream, in seconds
	idle               float64 // round trip without load, in ms
	loaded50, loaded99 float64 // round trip under four streams, in ms
	loadedLost         float64 // of those pings, in percent
	packet             float64 // CPU of both ends per UDP packet at a fixed rate, in µs
	lost               float64 // of those, in percent
	flood              float64 // UDP packets per second that arrive of too many
	floodPacket        float64 // CPU of both ends for each, in µs
	resident, peak     float64 // of the larger end after all that, in MB
}

var tunnelMeasures = []struct {
	name, unit, aim, ratio string
	of                     func(tunnelSample) float64
}{
	{"tcp1", "Gbit/s", "", ">= 0.97", func(s tunnelSample) float64 { return s.tcp1 }},
	{"tcp4", "Gbit/s", "", ">= 0.97", func(s tunnelSample) float64 { return s.tcp4 }},
	{"cpu_per_gigabyte", "s", "", "", func(s tunnelSample) float64 { return s.gigabyte }},
	{"rtt_idle", "ms", "", "", func(s tunnelSample) float64 { return s.idle }},
	{"rtt_loaded_p50", "ms", "", "<= 0.5", func(s tunnelSample) float64 { return s.loaded50 }},
	{"rtt_loaded_p99", "ms", "", "<= 0.5", func(s tunnelSample) float64 { return s.loaded99 }},
	{"rtt_loaded_lost", "%", "<= 1", "", func(s tunnelSample) float64 { return s.loadedLost }},
	{"udp_cpu", "µs", "", "<= 0.75", func(s tunnelSample) float64 { return s.packet }},
	{"udp_lost", "%", "", "", func(s tunnelSample) float64 { return s.lost }},
	{"udp_flood", "packets/s", "", "", func(s tunnelSample) float64 { return s.flood }},
	{"udp_flood_cpu", "µs", "", "<= 0.75", func(s tunnelSample) float64 { return s.floodPacket }},
	{"memory", "MB", "<= 150", "", func(s tunnelSample) float64 { return s.resident }},
	{"memory_peak", "MB", "<= 150", "", func(s tunnelSample) float64 { return s.peak }},
}

func median(samples []tunnelSample, of func(tunnelSample) float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	var values []float64
	for _, s := range samples {
		values = append(values, of(s))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q: want a number above 0", name, text)
	}
	return n
}

// tunnelPair is two hosts and the process of the device on each.
type tunnelPair struct {
	hosts [2]*lab.Host
	pids  [2]int
	to    string // the second host's address in the tunnel
}

func measureTunnel(t *testing.T, d tunnelled, seconds int) (s tunnelSample) {
	t.Helper()
	l := newLab(t)
	defer l.Close()
	var p tunnelPair
	for i, name := range []string{"a", "b"} {
		h, err := l.Host(name, lab.HostConfig{})
		if err != nil {
			t.Fatal(err)
		}
		p.hosts[i] = h
	}
	if _, _, err := l.Veth(p.hosts[0], p.hosts[1]); err != nil {
		t.Fatal(err)
	}
	for i, h := range p.hosts {
		p.run(t, h, "ip", "addr", "add", fmt.Sprintf("fd77::%d/64", i+1), "dev", "veth0", "nodad")
	}
	for i, h := range p.hosts {
		p.pids[i] = d.start(t, h, i+1, netip.MustParseAddr(fmt.Sprintf("fd77::%d", 2-i))).Pid()
	}
	p.to = tunnelAddr(2)
	await(t, d.name+" to carry a ping", 20*time.Second, func(ctx context.Context) error {
		_, err := p.hosts[0].Run(ctx, "ping", "-c1", "-W1", p.to)
		return err
	})
	s.idle, _, _ = p.ping(t, seconds)
	s.packet, s.lost = p.paced(t, 10_000, seconds)
	p.iperf(t, 1) // the windows open
	before := p.cpu(t)
	one := p.iperf(t, seconds)
	s.tcp1, s.gigabyte = one.gbits, (p.cpu(t)-before)/one.gigabytes
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		time.Sleep(time.Second / 2) // until the streams are up to speed
		s.loaded50, s.loaded99, s.loadedLost = p.ping(t, seconds-1)
	}()
	s.tcp4 = p.iperf(t, seconds, "-P", "4").gbits
	<-loaded
	before = p.cpu(t)
	flood := p.iperf(t, seconds, "-u", "-b", "0", "-l", "1200")
	s.flood, s.floodPacket = flood.packets/float64(seconds), (p.cpu(t)-before)/flood.packets*1e6
	for _, pid := range p.pids {
		s.resident, s.peak = max(s.resident, statusMB(t, pid, "VmRSS:")), max(s.peak, statusMB(t, pid, "VmHWM:"))
	}
	t.Logf("%s: %+v", d.name, s)
	return s
}

func (p *tunnelPair) run(t *testing.T, h *lab.Host, program string, args ...string) string {
	t.Helper()
	out, err := h.Run(context.Background(), program, args...)
	if err != nil {
		t.Errorf("%s: %v", h.Name(), err)
	}
	return out
}

// cpu is the time that the devices of both ends have used, in seconds.
func (p *tunnelPair) cpu(t *testing.T) (seconds float64) {
	t.Helper()
	for _, pid := range p.pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from the state on
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseFloat(field, 64)
			if err != nil {
				t.Fatal(err)
			}
			seconds += ticks / 100
		}
	}
	return seconds
}

// statusMB reads a line of a process's status that is in kB.
func statusMB(t *testing.T, pid int, name string) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			kb, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb / 1000
		}
	}
	t.Fatalf("process %d tells no %s", pid, name)
	return 0
}

// ping returns the median and the 99th percentile of round trips, in ms, and how many
// percent were not answered.
func (p *tunnelPair) ping(t *testing.T, seconds int) (p50, p99, lost float64) {
	count := max(seconds, 1) * 80
	out := p.run(t, p.hosts[0], "ping", "-i", "0.01", "-c", strconv.Itoa(count), "-W", "1", p.to)
	var trips []float64
	for line := range strings.Lines(out) {
		if _, rest, ok := strings.Cut(line, "time="); ok {
			if ms, err := strconv.ParseFloat(strings.Fields(rest)[0], 64); err == nil {
				trips = append(trips, ms)
			}
		}
	}
	if len(trips) == 0 {
		t.Error("no ping came back")
		return 0, 0, 100
	}
	slices.Sort(trips)
	return trips[len(trips)/2], trips[len(trips)*99/100], float64(count-len(trips)) / float64(count) * 100
}

type iperfResult struct{ gbits, gigabytes, packets float64 }

// iperf sends from the first to the second host.
func (p *tunnelPair) iperf(t *testing.T, seconds int, args ...string) (r iperfResult) {
	t.Helper()
	server, err := p.hosts[1].Start("iperf3", "iperf3", []string{"-s", "-1", "-B", p.to}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Kill()
	var result struct {
		Error string // iperf3 succeeds nevertheless
		End   struct {
			Received struct {
				Bits    float64 `json:"bits_per_second"`
				Bytes   float64 `json:"bytes"`
				Packets float64 `json:"packets"`
				Lost    float64 `json:"lost_packets"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	await(t, "iperf3", time.Duration(seconds+20)*time.Second, func(ctx context.Context) error {
		out, err := p.hosts[0].Run(ctx, "iperf3", append([]string{"-c", p.to, "-t", strconv.Itoa(seconds), "-J"}, args...)...)
		if err == nil {
			err = json.Unmarshal([]byte(out), &result)
		}
		if result.Error != "" {
			err, result.Error = errors.New(result.Error), ""
		}
		return err
	})
	got := result.End.Received
	return iperfResult{got.Bits / 1e9, got.Bytes / 1e9, got.Packets - got.Lost}
}

// startWireGuard runs a program that is used as wireguard-go is, set up with wg.
func startWireGuard(t *testing.T, h *lab.Host, program string, number int, other netip.Addr) *lab.Process {
	t.Helper()
	p, err := h.Start("wireguard-go", program, []string{"-f", "wgb"}, []string{"LOG_LEVEL=error"})
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "wg.conf")
	text := fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = 51820\n[Peer]\nPublicKey = %s\nAllowedIPs = fd00::/64\nEndpoint = %s\n",
		benchKeys[number-1], benchKeys[2-number].PublicKey(), netip.AddrPortFrom(other, 51820))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("wg setconf wgb %s && ip addr add %s/64 dev wgb nodad && ip link set wgb mtu 1420 up", conf, tunnelAddr(number))
	await(t, "wireguard-go", 5*time.Second, func(ctx context.Context) error {
		_, err := h.Run(ctx, "sh", "-c", script)
		return err
	})
	return p
}

func tunnelAddr(number int) string { return fmt.Sprintf("fd00::%d", number) }

// startDevice runs this test program again as a process that holds our device.
func startDevice(t *testing.T, h *lab.Host, number int, other netip.Addr) *lab.Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"WEFT_BENCH_DEVICE=" + fmt.Sprintf("%d %s", number, netip.AddrPortFrom(other, 51820))}
	p, err := h.Start("device", self, []string{"-test.run=^$"}, append(env, passOn("GOGC", "GOMAXPROCS", "GODEBUG")...))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "our device", 5*time.Second, func(ctx context.Context) error {
		_, err := h.Run(ctx, "sh", "-c", fmt.Sprintf("ip addr replace %s/64 dev wgb nodad && ip link set wgb up", tunnelAddr(number)))
		return err
	})
	return p
}

// passOn returns those variables of the environment that are set.
func passOn(names ...string) (env []string) {
	for _, name := range names {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// rivals is where the programs are that we are compared with.
func rivals(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("WEFT_RIVALS")
	if dir == "" {
		t.Skip("WEFT_RIVALS names no directory: make bench-tunnel builds them")
	}
	return dir
}

// startNebula runs nebula with certificates made for this run.
func startNebula(t *testing.T, h *lab.Host, number int, other netip.Addr) *lab.Process {
	t.Helper()
	dir := filepath.Join(filepath.Dir(filepath.Dir(h.Dir())), "nebula")
	if number == 1 {
		nebulaCertificates(t, dir)
	}
	config, err := template.ParseFiles(filepath.Join("testdata", "nebula.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	err = config.Execute(&text, map[string]any{"Dir": dir, "Number": number, "OtherNumber": 3 - number, "Other": other, "OtherInside": tunnelAddr(3 - number)})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.Dir(), "nebula.yml")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := h.Start("nebula", filepath.Join(rivals(t), "nebula"), []string{"-config", path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func nebulaCertificates(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	commands := [][]string{{"ca", "-version", "2", "-name", "bench"}}
	for n := 1; n <= 2; n++ {
		commands = append(commands, []string{"sign", "-version", "2", "-name", fmt.Sprint("host", n), "-networks", tunnelAddr(n) + "/64"})
	}
	for _, args := range commands {
		cmd := exec.Command(filepath.Join(rivals(t), "nebula-cert"), args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nebula-cert %s: %v: %s", args[0], err, out)
		}
	}
}
