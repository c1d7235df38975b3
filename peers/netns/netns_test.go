package netns

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}

func TestNamedNamespace(t *testing.T) {
	needRoot(t)
	name := fmt.Sprintf("weft-test-%d", os.Getpid())
	h, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	defer Remove(name)
	if _, err := Create(name); !errors.Is(err, os.ErrExist) {
		t.Fatalf("second Create: %v, want ErrExist", err)
	}
	again, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if same, err := h.Same(again); !same || err != nil {
		t.Fatalf("Same = %v, %v", same, err)
	}
	var none *Handle
	if same, err := h.Same(none); same || err != nil {
		t.Fatalf("Same as the process's = %v, %v", same, err)
	}
	if err := Remove(name); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(name); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("Open after Remove: %v, want ErrNotExist", err)
	}
	if err := Remove(name); err != nil {
		t.Fatalf("second Remove: %v", err)
	}
}

// A crash between making the file and mounting leaves a plain file: Open does not
// take it for a namespace, Create uses it.
func TestLeftOverFile(t *testing.T) {
	needRoot(t)
	name := fmt.Sprintf("weft-left-%d", os.Getpid())
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(Dir+"/"+name, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	defer Remove(name)
	if _, err := Open(name); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("Open of a plain file: %v, want ErrNotExist", err)
	}
	h, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
}

// A name that somebody has taken away comes back, and another one's is left alone.
func TestName(t *testing.T) {
	needRoot(t)
	name := fmt.Sprintf("weft-test-name-%d", os.Getpid())
	h, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	defer func() { Remove(name) }()
	if changed, err := h.Name(name); changed || err != nil {
		t.Errorf("it has its name: %t, %v", changed, err)
	}
	if err := Remove(name); err != nil {
		t.Fatal(err)
	}
	if named, err := h.Named(name); named || err != nil {
		t.Errorf("the name is gone: %t, %v", named, err)
	}
	if changed, err := h.Name(name); !changed || err != nil {
		t.Fatalf("Name: %t, %v", changed, err)
	}
	again, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if same, err := h.Same(again); !same || err != nil {
		t.Errorf("the name leads to another namespace: %t, %v", same, err)
	}
	if err := Remove(name); err != nil {
		t.Fatal(err)
	}
	other, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if changed, err := h.Name(name); changed || !errors.Is(err, os.ErrExist) {
		t.Errorf("another one has the name: %t, %v, want ErrExist", changed, err)
	}
}

// What is made inside stays inside, and the caller's own thread never leaves.
func TestDo(t *testing.T) {
	needRoot(t)
	h, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wt0"}, PeerName: "wt1"}
	if err := h.Do(func() error { return netlink.LinkAdd(link) }); err != nil {
		t.Fatal(err)
	}
	nl, err := h.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	if _, err := nl.LinkByName("wt1"); err != nil {
		t.Fatalf("inside: %v", err)
	}
	if _, err := netlink.LinkByName("wt1"); err == nil {
		t.Fatal("the link is visible outside")
	}
	want := errors.New("mine")
	if err := h.Do(func() error { return want }); err != want {
		t.Fatalf("Do returned %v", err)
	}
}
