package main

import (
	"cmp"
	"path"
	"slices"
	"strings"
)

// patch is one mistake. Its file begins with a head,
//
//	What the mistake is, in one line.
//	By: history
//	Packages: ./mesh/store ./mesh/controller
//	Run: ^TestHistory$
//
// and goes on with a unified diff (-p1). All but the first line may be left out:
// By history stands for the history checker alone; without Packages, the packages
// of the files that it changes are tested, then the history checker, then all of
// mesh.
type patch struct {
	name, file string
	what       string
	by         string
	packages   [][]string // tried in turn until one notices
	run        string
}

// history is how the history checker is run.
const (
	historyPackage = "./e2e/history"
	historyTest    = "^TestHistory$"
)

func parse(text string) patch {
	var p patch
	var files []string
	head := true
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "--- a/"); ok {
			head = false
			name, _, _ := strings.Cut(rest, "\t")
			files = append(files, name)
		}
		field, value, _ := strings.Cut(line, ": ")
		switch {
		case !head || line == "":
		case field == "By":
			p.by = value
		case field == "Packages":
			p.packages = [][]string{strings.Fields(value)}
		case field == "Run":
			p.run = value
		case p.what == "" && !strings.HasPrefix(line, "diff "):
			p.what = strings.TrimPrefix(line, "# ")
		}
	}
	switch {
	case p.by == "history":
		p.packages, p.run = [][]string{{historyPackage}}, historyTest
	case p.packages == nil:
		p.packages = [][]string{packagesOf(files), {historyPackage}, {"./mesh/..."}}
	}
	p.what = cmp.Or(p.what, "a mistake without a name")
	return p
}

func packagesOf(files []string) (out []string) {
	for _, f := range files {
		if dir := "./" + path.Dir(f); !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	return out
}
