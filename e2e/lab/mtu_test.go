package lab

import "testing"

// A narrow path loses what is larger, without a word, in both directions, and nothing
// else; what its receiver's kernel would take apart counts by its packets.
func TestNarrowPath(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ping")
	a, b := newHost(t, l, "a", HostConfig{}), newHost(t, l, "b", HostConfig{})
	must(t, l.Switch().SetMTU("a", "b", 1400))
	passes := func(from, to *Host, size string) error {
		_, err := from.Run(t.Context(), "ping", "-c", "1", "-W", "0.3", "-M", "do", "-s", size, to.Addr().String())
		return err
	}
	for _, pair := range [][2]*Host{{a, b}, {b, a}} {
		if err := passes(pair[0], pair[1], "1372"); err != nil { // 20 of IPv4, 8 of ICMP
			t.Errorf("%s to %s: 1400 bytes: %v", pair[0].Name(), pair[1].Name(), err)
		}
		if passes(pair[0], pair[1], "1373") == nil {
			t.Errorf("%s to %s: 1401 bytes passed a path of 1400", pair[0].Name(), pair[1].Name())
		}
	}
	c, err := l.Switch().Counters("a", "b")
	must(t, err)
	if c.Big != 1 {
		t.Errorf("%d large packets lost, want 1", c.Big)
	}
	must(t, l.Switch().SetMTU("a", "b", 1500))
	transfer(t, a, b, b.Addr(), 1<<20) // in frames of up to 64 kB
	if c, err = l.Switch().Counters("a", "b"); err != nil || c.Big != 1 {
		t.Errorf("%d large packets lost of TCP over a path as wide as the link (%v)", c.Big, err)
	}
	if err := l.Switch().SetMTU("a", "b", -1); err == nil {
		t.Error("an MTU of -1 was taken")
	}
	must(t, l.Switch().SetMTU("a", "b", 0))
	if err := passes(a, b, "1472"); err != nil {
		t.Error(err)
	}
}
