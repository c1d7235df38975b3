package controller

import (
	"strings"
	"testing"

	"github.com/weftmesh/weft/mesh"
)

func TestNameOfAController(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ url, want string }{
		{"https://192.0.2.1:7443", "192-0-2-1-7443"},
		{"https://[2001:db8::1]:7443", "2001-db8--1--7443"},
		{"https://[::1]:7443", "1--7443"},
		{"https://Mesh.Example.org:7443", "mesh-example-org-7443"},
		{"https://" + strings.Repeat("a.", 60) + "org:7443", strings.Repeat("a-", 60)[120-54:] + "org-7443"},
		{"", "controller"},
	} {
		got := nameOf(tt.url)
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.url, got, tt.want)
		}
		if err := mesh.CheckName("controller", got); err != nil {
			t.Errorf("%s: %v", tt.url, err)
		}
	}
}
