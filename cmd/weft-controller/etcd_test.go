package main

import "testing"

func TestSize(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text, again string
		want        int64 // 0: refused
	}{
		{"2GB", "2GB", 2 << 30},
		{"2 GiB", "2GB", 2 << 30},
		{"512mb", "512MB", 512 << 20},
		{"1024KB", "1MB", 1 << 20},
		{"1TB", "1TB", 1 << 40},
		{"1500", "1500B", 1500},
		{"2147483648", "2GB", 2 << 30},
		{"", "", 0},
		{"GB", "", 0},
		{"-1GB", "", 0},
		{"0", "", 0},
		{"1.5GB", "", 0},
		{"9999999999GB", "", 0},
		{"2 potatoes", "", 0},
	} {
		var s size
		err := s.Set(tt.text)
		if (err == nil) != (tt.want > 0) || int64(s) != tt.want {
			t.Errorf("%q: %d, %v; want %d", tt.text, int64(s), err, tt.want)
		}
		if err == nil && s.String() != tt.again {
			t.Errorf("%q is printed as %q, want %q", tt.text, s.String(), tt.again)
		}
	}
}
