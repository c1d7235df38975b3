package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The demo is the main job: all its facts hold.
func TestDemo(t *testing.T) {
	need(t, "dig", "curl", "getent", "wg-quick")
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin(t), "demo")).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "demo: 13 of 13 facts hold") {
		t.Fatal("the demo does not end in its last line")
	}
}

// A fact that would hold without its mechanism proves nothing. Two of them here;
// make demo-break tries all.
func TestDemoBreak(t *testing.T) {
	need(t, "dig", "curl", "getent", "wg-quick")
	for _, fact := range []string{"4", "7"} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin(t), "demo"), "--break", "--only", fact).CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
	}
}
