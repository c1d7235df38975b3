package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What pack leaves in DIR, beside root.
const (
	kernelFile = "vmlinuz.bin"
	initrdFile = "initrd.bin"
	indexFile  = "modules.bin"
)

// pack makes what the machine starts with: the kernel, an initrd that holds this
// program alone (all else is read from the host's files), and an index of modules.
func pack(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if strings.ContainsAny(dir, " \t\n") {
		return fmt.Errorf("%q: a kernel's command line cannot name a directory with a space", dir)
	}
	kernels, err := filepath.Glob(filepath.Join(dir, "root/boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return fmt.Errorf("%s/root/boot has %d kernels, want 1: run unpack.sh again", dir, len(kernels))
	}
	modules, err := readModules(filepath.Join(dir, "root/lib/modules"))
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	if err := static(program); err != nil {
		return err
	}
	image, err := os.ReadFile(kernels[0])
	if err != nil {
		return err
	}
	var initrd archive
	initrd.dir("dev")
	initrd.file("init", 0o755, program)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, indexFile), modules.index(), 0o644),
		os.WriteFile(filepath.Join(dir, initrdFile), initrd.bytes(), 0o644),
		os.WriteFile(filepath.Join(dir, kernelFile), image, 0o644), // last: whoever finds it finds the others
	)
}

// static: there are no libraries in an initrd that holds one program.
func static(program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("this program is linked dynamically: build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// archive is a cpio archive in the format "newc", as the kernel unpacks it
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	b     bytes.Buffer
	inode int
}

func (a *archive) dir(name string) { a.entry(name, 0o040755, nil) }
func (a *archive) file(name string, mode fs.FileMode, data []byte) {
	a.entry(name, 0o100000|int(mode), data)
}

func (a *archive) entry(name string, mode int, data []byte) {
	a.inode++
	links := 1
	fmt.Fprintf(&a.b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.b.WriteString(name + "\x00")
	a.pad()
	a.b.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.b.Len()%4 != 0 {
		a.b.WriteByte(0)
	}
}

func (a *archive) bytes() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.b.Bytes()
}

// module is one of the kernel's, by what it says of itself.
type module struct {
	name, path string // path: below the index's directory
	depends    []string
	aliases    []string // without those that hold a pattern: nothing here has such a device
}

type modules []module

func readModules(root string) (modules, error) {
	var out modules
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".ko") {
			return err
		}
		m, err := readModule(path)
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		out = append(out, m)
		return nil
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("no modules below %s", root)
	}
	return out, err
}

func readModule(path string) (module, error) {
	m := module{name: moduleName(strings.TrimSuffix(filepath.Base(path), ".ko")), path: path}
	f, err := elf.Open(path)
	if err != nil {
		return m, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return m, errors.New("it has no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return m, err
	}
	for line := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(line, "=")
		switch {
		case key == "depends" && value != "":
			for name := range strings.SplitSeq(value, ",") {
				m.depends = append(m.depends, moduleName(name))
			}
		case key == "alias" && !strings.ContainsAny(value, "*?[ "):
			m.aliases = append(m.aliases, value)
		}
	}
	return m, nil
}

// moduleName: "-" and "_" are the same to modprobe.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// index is a line for each name by which a module is asked for, with the files to
// load for it in their order. What it depends on comes first.
func (ms modules) index() []byte {
	byName := map[string]module{}
	for _, m := range ms {
		byName[m.name] = m
	}
	var files func(name string, have []string) []string
	files = func(name string, have []string) []string {
		m, there := byName[name]
		if !there || slices.Contains(have, m.path) {
			return have // built in, or taken already
		}
		for _, d := range m.depends {
			have = files(d, have)
		}
		return append(have, m.path)
	}
	var lines []string
	for _, m := range ms {
		paths := strings.Join(files(m.name, nil), " ")
		for _, name := range append([]string{m.name}, m.aliases...) {
			lines = append(lines, name+" "+paths+"\n")
		}
	}
	slices.Sort(lines)
	return []byte(strings.Join(slices.Compact(lines), ""))
}

// lookup finds the files for a name in an index.
func lookup(index []byte, name string) []string {
	for line := range bytes.Lines(index) {
		if rest, found := bytes.CutPrefix(line, []byte(name+" ")); found {
			return strings.Fields(string(rest))
		}
	}
	return nil
}
