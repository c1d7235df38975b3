package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// repository is the tree that the patches are for.
const repository = "../.."

func needGit(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("patches are applied with git, which is not here")
	}
}

// Every mistake that is kept here can still be planted: code that changes must not
// leave them behind.
func TestPatchesApply(t *testing.T) {
	needGit(t)
	patches, err := load(".")
	if err != nil {
		t.Fatal(err)
	}
	bed, err := newBed(t.Context(), repository)
	if err != nil {
		t.Fatal(err)
	}
	defer bed.close()
	alone := 0
	for _, p := range patches {
		if err := bed.apply(t.Context(), p, "--check"); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		if p.by == "history" {
			alone++
		}
	}
	if len(patches) < 18 || alone < 4 {
		t.Errorf("there are %d mistakes, %d of them for the history checker alone; want 18 and 4", len(patches), alone)
	}
}

// The cheapest of them are noticed.
func TestCheapMutantsAreCaught(t *testing.T) {
	needGit(t)
	if testing.Short() {
		t.Skip("it builds and runs tests of other packages")
	}
	patches, err := load(".")
	if err != nil {
		t.Fatal(err)
	}
	bed, err := newBed(t.Context(), repository)
	if err != nil {
		t.Fatal(err)
	}
	defer bed.close()
	tried := 0
	for _, p := range patches {
		if !slices.Equal(p.packages[0], []string{"./mesh"}) {
			continue
		}
		tried++
		if by, err := bed.try(t.Context(), p); err != nil {
			t.Errorf("%s: %v", p.name, err)
		} else {
			t.Logf("%s: %s", p.name, by)
		}
	}
	if tried == 0 {
		t.Error("none is cheap: this test proves nothing")
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	const diff = "--- a/mesh/store/txn.go\n+++ b/mesh/store/txn.go\n@@ -1 +1 @@\n-Run: x\n+By: y\n"
	for _, tt := range []struct {
		name, text, what, run string
		packages              string
	}{
		{"history", "A compare is left out.\nBy: history\n" + diff, "A compare is left out.", "^TestHistory$", "./e2e/history"},
		{"named", "# Two.\nPackages: ./mesh ./mesh/store\nRun: ^TestX$\n\ndiff --git a/x b/x\n" + diff, "Two.", "^TestX$", "./mesh ./mesh/store"},
		{"bare", diff, "a mistake without a name", "", "./mesh/store | ./e2e/history | ./mesh/..."},
	} {
		p := parse(tt.text)
		var packages []string
		for _, x := range p.packages {
			packages = append(packages, strings.Join(x, " "))
		}
		if got := strings.Join(packages, " | "); p.what != tt.what || p.run != tt.run || got != tt.packages {
			t.Errorf("%s: %q, %q, %q", tt.name, p.what, p.run, got)
		}
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	out := func(line string) string { return `{"Action":"output","Package":"x","Output":"` + line + `\n"}` + "\n" }
	exit := exec.Command("false").Run()
	for _, tt := range []struct {
		name, text string
		err        error
		by, why    string
	}{
		{"passes", out("--- PASS: TestA (0.00s)"), nil, "", "the tests pass"},
		{"fails", out("--- FAIL: TestA (0.00s)") + out("    x_test.go:1: no"), exit, "TestA", ""},
		{"a part fails", out("    --- FAIL: TestA/b (0.00s)"), exit, "TestA/b", ""},
		{"panics", out("--- FAIL: TestA (0.00s)") + out("panic: nil"), exit, "", "panic: nil"},
		{"fails, then another panics", out("--- FAIL: TestA (0.00s)") + out("    x") + out("--- FAIL: TestB (0.00s)") + out("panic: nil"), exit, "TestA", ""},
		{"takes too long", out("panic: test timed out after 6m0s"), exit, "", "timed out"},
		{"does not build", `{"ImportPath":"x","Action":"build-output","Output":"x.go:1:1: no\n"}` + "\n" + `{"Action":"fail","Package":"x"}`, exit, "", "does not build: x.go"},
		{"cannot be run", "", exit, "", "exit status"},
	} {
		by, err := verdict([]byte(tt.text), tt.err)
		if by != tt.by || tt.why == "" && err != nil || tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why)) {
			t.Errorf("%s: by %q, %v", tt.name, by, err)
		}
	}
}
