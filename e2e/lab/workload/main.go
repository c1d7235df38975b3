// Command workload is a machine's workload for the lab: over HTTP it tells who it is,
// over UDP and TCP it says back what it hears, it sends and counts numbered
// packets, and it can be a prober. It is no part of the product.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weftmesh/weft/e2e/prober"
)

// answer is what GET / of any path is answered with, in JSON.
type answer struct {
	Name   string `json:"name"`
	Region string `json:"region"`
	Client string `json:"client"` // address and port that the request came from
	Server string `json:"server"` // that it went to
}

func main() {
	listen := flag.String("listen", "[::]:80", "address for HTTP")
	echo := flag.String("echo", "[::]:7", "address for UDP and TCP echo; none if empty")
	name := flag.String("name", os.Getenv("WEFT_NAME"), "name to answer with (WEFT_NAME)")
	region := flag.String("region", os.Getenv("WEFT_REGION"), "region to answer with (WEFT_REGION)")
	numbers := flag.String("numbers", "", "address to take numbered packets at, UDP; none if empty")
	to := flag.String("send", "", "send numbered packets to this address, and serve nothing")
	first := flag.Uint64("first", 0, "number of the first packet to send")
	rate := flag.Int("rate", 1000, "packets to send, a second")
	path := flag.String("record", "", "file to note numbered packets in")
	control := flag.String("prober", "", "be a prober that listens on this unix socket, and serve nothing else")
	ports := flag.String("prober-at", "[::]:7,[::]:9", "where a prober listens, over TCP and UDP")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if *control != "" {
		if err := probe(ctx, *control, *name, *ports); err != nil {
			fmt.Fprintln(os.Stderr, "prober:", err)
			os.Exit(1)
		}
		return
	}
	if err := numbered(ctx, *numbers, *to, *first, *rate, *path); err != nil {
		fmt.Fprintln(os.Stderr, "numbers:", err)
		os.Exit(1)
	}
	if *to != "" {
		return
	}
	if err := run(ctx, *listen, *echo, answer{Name: *name, Region: *region}, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

// probe is a prober until ctx ends.
func probe(ctx context.Context, socket, who, at string) error {
	cfg := prober.Config{Socket: socket, Who: who}
	for _, text := range strings.FieldsFunc(at, func(r rune) bool { return r == ',' }) {
		a, err := netip.ParseAddrPort(text)
		if err != nil {
			return fmt.Errorf("-prober-at: %w", err)
		}
		cfg.Echoes = append(cfg.Echoes, a)
	}
	return prober.Serve(ctx, cfg)
}

// numbered sends numbered packets until ctx ends, or takes them as long as the process
// lives, or neither.
func numbered(ctx context.Context, numbers, to string, first uint64, rate int, path string) error {
	if numbers == "" && to == "" {
		return nil
	}
	r, err := openRecord(path)
	if err != nil {
		return err
	}
	if to != "" {
		return send(ctx, to, first, rate, r, os.Stdout)
	}
	c, err := net.ListenPacket("udp", numbers)
	if err != nil {
		return err
	}
	go sink(c, r)
	return nil
}

// run serves until ctx ends. It prints a line when it listens.
func run(ctx context.Context, listen, echo string, who answer, out io.Writer) error {
	web, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	closers := []io.Closer{}
	var group sync.WaitGroup
	if echo != "" {
		tcp, err := net.Listen("tcp", echo)
		if err != nil {
			return errors.Join(err, web.Close())
		}
		// The same port as TCP got, should that have been any.
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err != nil {
			return errors.Join(err, web.Close(), tcp.Close())
		}
		closers = append(closers, tcp, udp)
		group.Go(func() { echoTCP(ctx, tcp) })
		group.Go(func() { echoUDP(udp) })
		fmt.Fprintf(out, "echo on %s\n", tcp.Addr())
	}
	server := &http.Server{Handler: handler(who), ReadHeaderTimeout: 10 * time.Second}
	closers = append(closers, server)
	stop := context.AfterFunc(ctx, func() {
		for _, c := range closers {
			_ = c.Close() // it is the end either way
		}
	})
	defer stop()
	fmt.Fprintf(out, "http on %s\n", web.Addr())
	err = server.Serve(web)
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	group.Wait()
	return nil
}

func handler(who answer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := who
		a.Client = r.RemoteAddr
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			a.Server = local.String()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a) // the client may be gone
	})
}

func echoTCP(ctx context.Context, l net.Listener) {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		group.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			_, _ = io.Copy(conn, conn)
		})
	}
}

// echoUDP answers from the address that was spoken to as far as the kernel picks
// it by the route back: on a machine with one address that is the same.
func echoUDP(c net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteTo(buf[:n], from) // an error is the next packet's, or a lost one
		}
	}
}
