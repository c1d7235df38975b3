package check

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"

	"github.com/weftmesh/weft/mesh"
)

// Dial opens a connection to a machine, as net.Dialer.DialContext does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Attempt makes one attempt at a check of kind tcp or http: nil if it succeeded
// before ctx ended.
func Attempt(ctx context.Context, dial Dial, c mesh.Check, addr netip.Addr) error {
	at := netip.AddrPortFrom(addr, c.Port).String()
	switch c.Kind {
	case mesh.CheckTCP:
		conn, err := dial(ctx, "tcp", at)
		if err != nil {
			return err
		}
		return conn.Close()
	case mesh.CheckHTTP:
		return get(ctx, dial, "http://"+at+c.Path)
	}
	return fmt.Errorf("check %s: not one that is made from outside", c)
}

// get asks for one page, over a connection of its own, and follows nowhere.
func get(ctx context.Context, dial Dial, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "weft-check")
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.CopyN(io.Discard, resp.Body, mostBody) // so that the other end sees an orderly end
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("HTTP status %s", strconv.Itoa(resp.StatusCode))
	}
	return nil
}

// mostBody is how much of a page is read.
const mostBody = 64 << 10
