package etcd

import (
	"errors"
	"testing"
)

// Where the content has moved away, no server starts, and everybody is told where
// it went.
func TestRetire(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, testConfig(dir))
	put(t, s.Client(), "k", "v")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	const to = "https://192.0.2.1:2379,https://192.0.2.2:2379"
	for range 2 {
		if err := Retire(dir, to); err != nil {
			t.Fatal(err)
		}
		s, err := Start(t.Context(), testConfig(dir))
		if err == nil {
			s.Close()
			t.Fatal("started")
		}
		var moved *MovedError
		if !errors.As(err, &moved) || moved.To != to || moved.Dir != dir {
			t.Errorf("error %v", err)
		}
	}
}
