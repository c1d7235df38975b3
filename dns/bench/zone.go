package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/weftmesh/weft/dns"
)

// The zone: 10,000 apps with one machine each, which any server can have; and, for
// what only the mesh's own has, apps with many machines in three regions.
const (
	names  = 10_000
	groups = 100 // of 30 machines each

	serverAddr = "fd12:3456:789a:1::3"
	clientAddr = "fd12:3456:789a:1:100:1:1:2"
	port       = 53
)

func address(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:1:100:%x:%x:2", 2+i/50000, 1+i%50000))
}

func data() dns.Data {
	d := dns.Data{
		Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"), Resolver: netip.MustParseAddr("fd12:3456:789a::3"), Self: "h0",
		Regions: []dns.Region{{Name: "fra"}, {Name: "ams"}, {Name: "nrt"}},
	}
	for i := range 9 {
		d.Hosts = append(d.Hosts, dns.Host{Name: fmt.Sprintf("h%d", i), Region: d.Regions[i%3].Name, Addr: netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:0:100:%x:0:1", i+1))})
	}
	org := dns.Org{Name: "acme", Prefix: netip.MustParsePrefix("fd12:3456:789a:1::/64"), Resolver: netip.MustParseAddr(serverAddr)}
	for i := range names {
		org.Machines = append(org.Machines, plainMachine(i))
	}
	for g := range groups {
		for i := range 30 {
			org.Machines = append(org.Machines, machine(names+30*g+i, fmt.Sprintf("g%d-%d", g, i), fmt.Sprintf("group%d", g), i%9))
		}
	}
	d.Orgs = []dns.Org{org}
	return d
}

func machine(i int, id, app string, host int) dns.Machine {
	return dns.Machine{ID: id, App: app, Host: fmt.Sprintf("h%d", host), Addr: address(i), Started: true, Healthy: true}
}

// plainMachine is the only one of its app.
func plainMachine(i int) dns.Machine {
	return machine(i, fmt.Sprintf("m%d", i), fmt.Sprintf("app%d", i), i%9)
}

// prepare makes the namespace's addresses, the zone file, the questions and the
// rivals' configurations.
func prepare(dir, configs string) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	for _, a := range []string{serverAddr, clientAddr} {
		if err == nil {
			err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(a), Mask: net.CIDRMask(128, 128)}})
		}
	}
	if err != nil {
		return fmt.Errorf("prepare the namespace: %w", err)
	}
	for _, name := range []string{"Corefile", "nsd.conf"} {
		text, err := os.ReadFile(filepath.Join(configs, name))
		if err != nil {
			return err
		}
		out := strings.NewReplacer("@DIR@", dir, "@ADDRESS@", serverAddr).Replace(string(text))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(out), 0o644); err != nil {
			return err
		}
	}
	return write(map[string]func(*bufio.Writer){
		filepath.Join(dir, "internal.zone"): func(w *bufio.Writer) {
			fmt.Fprintln(w, "internal. 5 IN SOA _api.internal. hostmaster.internal. 1 3600 600 86400 1\ninternal. 5 IN NS _api.internal.")
			for i := range names {
				fmt.Fprintf(w, "app%d.internal. 5 IN AAAA %s\n", i, address(i))
			}
		},
		filepath.Join(dir, "plain"): func(w *bufio.Writer) {
			for _, i := range rand.Perm(names) {
				fmt.Fprintf(w, "app%d.internal AAAA\n", i)
			}
		},
		filepath.Join(dir, "mixed"): func(w *bufio.Writer) {
			for _, i := range rand.Perm(names) {
				g := i % groups
				switch i % 10 {
				case 0:
					fmt.Fprintf(w, "_443._tcp.group%d.internal SRV\n", g)
				case 1:
					fmt.Fprintf(w, "nosuch%d.internal AAAA\n", i)
				case 2:
					fmt.Fprintf(w, "regions.group%d.internal TXT\n", g)
				case 3:
					fmt.Fprintf(w, "top3.nearest.of.group%d.internal AAAA\n", g)
				case 4:
					fmt.Fprintf(w, "group%d.internal AAAA\n", g)
				default:
					fmt.Fprintf(w, "app%d.internal AAAA\n", i)
				}
			}
		},
	})
}

func write(files map[string]func(*bufio.Writer)) error {
	for path, fill := range files {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		w := bufio.NewWriter(f)
		fill(w)
		if err := w.Flush(); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
