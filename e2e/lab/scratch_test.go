package lab

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Labs that come and go at the same time in one place do not take each other's
// directory away, and the last one leaves nothing.
func TestScratchTogether(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "labs")
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				s, err := newScratch(base)
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(s.dir, "mine"), nil, 0o600); err != nil {
					t.Error(err)
				}
				if err := s.close(false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if entries, err := os.ReadDir(base); !os.IsNotExist(err) {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// What is left of a lab that was killed goes, and what another holds stays.
func TestSweep(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "labs")
	must(t, Sweep(base)) // there is nothing
	held, err := newScratch(base)
	must(t, err)
	killed := filepath.Join(base, "lab-1-1")
	must(t, os.Mkdir(killed, 0o755), os.WriteFile(filepath.Join(killed, "file"), nil, 0o600), Sweep(base))
	if _, err := os.Stat(killed); !os.IsNotExist(err) {
		t.Errorf("%s: %v; want it gone", killed, err)
	}
	if _, err := os.Stat(held.dir); err != nil {
		t.Error(err)
	}
	held.lock.Close()
	must(t, Sweep(base))
	if entries, err := os.ReadDir(base); !os.IsNotExist(err) {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestScratchNotOurs(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	link := filepath.Join(t.TempDir(), "link")
	dangling := filepath.Join(t.TempDir(), "dangling")
	must(t, os.WriteFile(file, nil, 0o600), os.Symlink(t.TempDir(), link), os.Symlink("/nowhere/at/all", dangling))
	for path, want := range map[string]string{file: "not a directory", link: "is not a directory of our own", dangling: "is not a directory of our own"} {
		if s, err := newScratch(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %q", path, s, err, want)
		}
	}
}
