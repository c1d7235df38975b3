package prober

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What is said comes back, and the one who heard it knows who said it.
func TestEchoes(t *testing.T) {
	e := &ears{heard: map[Heard]*Heard{}}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	at, err := e.listen(ctx, &group, netip.MustParseAddrPort("[::1]:0"))
	if err != nil {
		t.Skipf("no IPv6 on loopback: %v", err)
	}
	closed := netip.AddrPortFrom(at.Addr(), 1)
	got := Try(ctx, "acme/web-1", 600*time.Millisecond, []Question{
		{Kind: TCP, To: at}, {Kind: UDP, To: at}, {Kind: TCP, To: closed}, {Kind: UDP, To: closed}, {Kind: "smoke", To: at},
	})
	for i, want := range []bool{true, true, false, false, false} {
		if got[i].OK != want || want == (got[i].Error != "") {
			t.Errorf("question %d: %+v", i, got[i])
		}
	}
	want := []Heard{
		{Kind: TCP, Port: at.Port(), From: at.Addr(), Who: "acme/web-1", Count: 1},
		{Kind: UDP, Port: at.Port(), From: at.Addr(), Who: "acme/web-1", Count: 1},
	}
	if diff := cmp.Diff(want, e.take(), cmpopts.IgnoreFields(Heard{}, "First", "Last"), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("heard (-want +got):\n%s", diff)
	}
}

func TestSpeaker(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, want string }{
		{line("acme/a", "x1"), "acme/a"}, {"", ""}, {"weft-prober \n", ""}, {"weft-prober a b c\n", ""}, {"hello a b\n", ""},
	} {
		if got := speaker(tt.text); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}

// The socket is a file, and all questions are tried at once.
func TestServe(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, Config{Socket: socket, Who: "me"}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	c := Client{Socket: socket}
	var self Self
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		if self, err = c.Self(ctx); err == nil {
			break
		}
	}
	if err != nil || self.Who != "me" {
		t.Fatalf("%+v, %v", self, err)
	}
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	questions := make([]Question, 20)
	for i := range questions {
		questions[i] = Question{Kind: UDP, To: netip.MustParseAddrPort(silent.LocalAddr().String())}
	}
	began := time.Now()
	answers, err := c.Ask(ctx, 300*time.Millisecond, questions)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range answers {
		if a.OK || !strings.Contains(a.Error, "nothing came back") {
			t.Errorf("%+v", a)
		}
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("20 questions of 300 ms took %s", took)
	}
	if none, err := c.Ask(ctx, time.Second, nil); none != nil || err != nil {
		t.Errorf("no questions: %v, %v", none, err)
	}
}
