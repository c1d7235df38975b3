package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs the program on ports of the kernel's choice and returns the addresses.
func start(t *testing.T) (web, echo string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(ctx, "127.0.0.1:0", "127.0.0.1:0", answer{Name: "web-1", Region: "fra"}, w) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	lines := bufio.NewScanner(r)
	for range 2 {
		lines.Scan()
		if a, ok := strings.CutPrefix(lines.Text(), "echo on "); ok {
			echo = a
		}
		if a, ok := strings.CutPrefix(lines.Text(), "http on "); ok {
			web = a
		}
	}
	return web, echo
}

func TestHTTP(t *testing.T) {
	web, _ := start(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + web + "/any/path")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got answer
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got.Client, "127.0.0.1:") {
		t.Errorf("client %q", got.Client)
	}
	got.Client = ""
	if diff := cmp.Diff(answer{Name: "web-1", Region: "fra", Server: web}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A connection that is open when the program ends does not keep it.
func TestEcho(t *testing.T) {
	_, addr := start(t)
	for _, network := range []string{"tcp", "udp"} {
		c, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5)
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
			t.Errorf("%s: %q, %v", network, buf, err)
		}
	}
}

func TestPortTaken(t *testing.T) {
	web, _ := start(t)
	if err := run(t.Context(), web, "", answer{}, io.Discard); err == nil {
		t.Error("no error although the port is taken")
	}
	if err := run(t.Context(), "127.0.0.1:0", web, answer{}, io.Discard); err == nil {
		t.Error("no error although the echo port is taken")
	}
}
