// Command lookup is a Go program that looks names up, as any of them does: with
// package net, and with the resolver that GODEBUG=netdns chooses. It is for the lab
// and no part of the product.
//
//	lookup reach NAME...      who answers at each name
//	lookup TYPE NAME          records: aaaa, a, txt, srv, ptr
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

const patience = 5 * time.Second

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: lookup reach NAME... | lookup TYPE NAME")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if os.Args[1] == "reach" {
		for _, name := range os.Args[2:] {
			fmt.Println(reach(name))
		}
		return
	}
	lines, err := records(ctx, os.Args[1], os.Args[2])
	var answered *net.DNSError
	if errors.As(err, &answered) && answered.IsNotFound {
		fmt.Println("not found")
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lookup:", err)
		os.Exit(1)
	}
	fmt.Println(strings.Join(lines, "\n"))
}

// reach connects by name and returns a line: the name, the addresses that the
// program was given, what was said by whoever answered; with tabs between.
func reach(name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	given, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return name + "\t\terror: " + err.Error()
	}
	var addrs []string
	for _, a := range given {
		addrs = append(addrs, a.String())
	}
	said, err := get(ctx, name)
	if err != nil {
		said = "error: " + err.Error()
	}
	return name + "\t" + strings.Join(addrs, ",") + "\t" + said
}

// get says GET and returns the body.
func get(ctx context.Context, name string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(name, "80"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", name); err != nil {
		return "", err
	}
	page, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	_, body, _ := strings.Cut(string(page), "\r\n\r\n")
	return strings.TrimSpace(body), nil
}

func records(ctx context.Context, kind, name string) ([]string, error) {
	r := net.DefaultResolver
	switch kind {
	case "aaaa", "a":
		list, err := r.LookupNetIP(ctx, map[string]string{"aaaa": "ip6", "a": "ip4"}[kind], name)
		return text(list, netip.Addr.String), err
	case "txt":
		return r.LookupTXT(ctx, name)
	case "ptr":
		return r.LookupAddr(ctx, name)
	case "srv":
		_, list, err := r.LookupSRV(ctx, "", "", name)
		return text(list, func(s *net.SRV) string {
			return fmt.Sprintf("%d %d %d %s", s.Priority, s.Weight, s.Port, s.Target)
		}), err
	}
	return nil, fmt.Errorf("type %q: want a, aaaa, txt, srv or ptr", kind)
}

func text[T any](list []T, line func(T) string) []string {
	out := make([]string, len(list))
	for i, x := range list {
		out[i] = line(x)
	}
	return out
}
