// Package e2e proves the whole: scenarios in network namespaces with the real
// programs, and the rules of the house itself. How the scenarios' machines,
// links and processes come about is package lab's business.
package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/weftmesh/weft"

// directory is one folder of Go files.
type directory struct {
	imports     map[string][]string // import path: files that have it (tests apart)
	packageDocs []string            // files with a package comment
	name        string              // package name
}

// house reads the imports and package comments of the whole repository.
func house(t *testing.T) map[string]*directory {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]*directory{}
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && file != root || d.Name() == "testdata" || file == filepath.Join(root, "build")) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, filepath.Dir(file))
		dir := dirs[rel]
		if dir == nil {
			dir = &directory{imports: map[string][]string{}}
			dirs[rel] = dir
		}
		if f.Doc != nil {
			dir.packageDocs = append(dir.packageDocs, filepath.Base(file))
		}
		if strings.HasSuffix(file, "_test.go") {
			return nil
		}
		dir.name = f.Name.Name
		for _, spec := range f.Imports {
			p := strings.Trim(spec.Path.Value, `"`)
			dir.imports[p] = append(dir.imports[p], filepath.Base(file))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// closure returns everything of ours that dir imports, directly or not.
func closure(dirs map[string]*directory, dir string, seen map[string]bool) map[string]bool {
	if seen[dir] || dirs[dir] == nil {
		return seen
	}
	seen[dir] = true
	for p := range dirs[dir].imports {
		if rel, ours := strings.CutPrefix(p, module+"/"); ours {
			closure(dirs, rel, seen)
		}
	}
	return seen
}

func within(dir, room string) bool { return dir == room || strings.HasPrefix(dir, room+"/") }

// Imports point one way: cmd -> mesh/* -> mesh -> ipam, peers; peers/* -> peers;
// ipam, peers and dns import nothing of ours.
func TestImportsPointOneWay(t *testing.T) {
	allowed := func(from, to string) bool {
		switch {
		case within(from, "e2e"):
			return true // tests and the lab may import what they test
		case within(from, "cmd"):
			return within(to, "cmd/internal") || !within(to, "cmd") && !within(to, "e2e")
		case from == "mesh":
			return to == "ipam" || to == "peers"
		case within(from, "mesh"):
			return to == "ipam" || within(to, "peers") || within(to, "dns") || within(to, "mesh")
		case from == "ipam" || from == "peers" || from == "dns":
			return false
		case within(from, "peers"):
			return within(to, "peers")
		case within(from, "dns"):
			return to == "dns"
		}
		return false
	}
	for from, dir := range house(t) {
		for p, files := range dir.imports {
			if to, ours := strings.CutPrefix(p, module+"/"); ours && !allowed(from, to) {
				t.Errorf("%s (%s) imports %s: imports point the other way", from, strings.Join(files, ", "), to)
			}
		}
	}
}

// Some libraries have one room, so that there is one room to change.
func TestLibrariesHaveTheirRoom(t *testing.T) {
	for _, tt := range []struct {
		library string
		rooms   []string
	}{
		{"go.etcd.io/", []string{"mesh/store", "mesh/etcd", "e2e/lab", "e2e/lab/streams"}},
		{"github.com/miekg/dns", []string{"dns"}},
		{"golang.zx2c4.com/wireguard/device", []string{"peers/userspace", "peers/netstack"}},
		{"github.com/google/nftables", []string{"peers/firewall", "e2e"}},
		{"github.com/danielgtaylor/huma", []string{"mesh/controller"}},
	} {
		for from, dir := range house(t) {
			for p := range dir.imports {
				if strings.HasPrefix(p, tt.library) && !slices.ContainsFunc(tt.rooms, func(room string) bool { return within(from, room) }) {
					t.Errorf("%s imports %s, which only %s may", from, p, strings.Join(tt.rooms, ", "))
				}
			}
		}
	}
}

// The etcd server is large and is the controller's alone.
func TestOnlyTheControllerReachesTheEtcdServer(t *testing.T) {
	dirs := house(t)
	for dir := range dirs {
		if !within(dir, "cmd") || dir == "cmd/weft-controller" {
			continue
		}
		if closure(dirs, dir, map[string]bool{})["mesh/etcd"] {
			t.Errorf("%s reaches mesh/etcd", dir)
		}
	}
	if !closure(dirs, "cmd/weft-controller", map[string]bool{})["mesh/etcd"] {
		t.Error("cmd/weft-controller does not reach mesh/etcd: this test looks in the wrong place")
	}
}

// Every directory says once what it is for.
func TestOnePackageComment(t *testing.T) {
	for path, dir := range house(t) {
		if len(dir.packageDocs) != 1 {
			t.Errorf("%s has %d package comments (%s), want 1", path, len(dir.packageDocs), strings.Join(dir.packageDocs, ", "))
		}
	}
}

// The top level holds the rooms, and besides them only what belongs to a
// repository.
func TestTopLevel(t *testing.T) {
	known := []string{"cmd", "mesh", "ipam", "dns", "peers", "e2e", "go.mod", "go.sum", "Makefile", "README.md", "LICENSE", "CHANGELOG.md", "DESIGN.md", "packaging", "build"}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(known, e.Name()) && !strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s does not belong at the top level", path.Join("/", e.Name()))
		}
	}
}
