package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// limit bounds one run of tests.
const limit = 6 * time.Minute

// bed is a copy of the tree, in which one mistake at a time is planted.
type bed struct {
	dir    string
	output string          // directory for what the tests print; "": nowhere
	sound  map[string]bool // runs of tests that pass without any mistake
}

// newBed copies the tree at root.
func newBed(ctx context.Context, root string) (*bed, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return nil, fmt.Errorf("patches are applied with git: %w", err)
	}
	dir, err := os.MkdirTemp("", "weft-mutants")
	if err != nil {
		return nil, err
	}
	b := &bed{dir: dir, sound: map[string]bool{}}
	if err := copyTree(ctx, root, dir); err != nil {
		b.close()
		return nil, fmt.Errorf("copy the tree: %w", err)
	}
	return b, nil
}

func (b *bed) close() { os.RemoveAll(b.dir) }

// copyTree copies files, but for what is built and git's own.
func copyTree(ctx context.Context, from, to string) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel == ".git" || rel == "build" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), text, 0o644)
	})
}

// apply plants a patch, or with "-R" takes it away. Nothing may have moved but
// lines as a whole: there is no fuzz.
func (b *bed) apply(ctx context.Context, p patch, options ...string) error {
	args := append([]string{"apply", "-p1", "--whitespace=nowarn"}, options...)
	cmd := exec.CommandContext(ctx, "git", append(args, p.file)...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(b.dir), "GIT_DIR=/nonexistent")
	if text, err := cmd.CombinedOutput(); err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		return fmt.Errorf("it does not apply: %s", line)
	}
	return nil
}

// try plants a mistake, and returns the test that noticed.
func (b *bed) try(ctx context.Context, p patch) (by string, err error) {
	for _, packages := range p.packages {
		if err := b.isSound(ctx, packages, p.run); err != nil {
			return "", err
		}
	}
	if err := b.apply(ctx, p); err != nil {
		return "", err
	}
	defer func() {
		if back := b.apply(context.WithoutCancel(ctx), p, "-R"); back != nil {
			err = errors.Join(err, back)
		}
	}()
	for _, packages := range p.packages {
		by, err = b.test(ctx, p.name, packages, p.run)
		if err == nil {
			return by, nil
		}
	}
	return "", err
}

// errPassed says that no assertion failed.
var errPassed = errors.New("the tests pass")

// isSound makes sure that tests pass without a mistake: otherwise their failing
// says nothing.
func (b *bed) isSound(ctx context.Context, packages []string, run string) error {
	key := strings.Join(packages, " ") + " " + run
	if b.sound[key] {
		return nil
	}
	by, err := b.test(ctx, "none", packages, run)
	if errors.Is(err, errPassed) {
		b.sound[key] = true
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%s fails", by)
	}
	return fmt.Errorf("without it: %w", err)
}

// test runs tests, and returns the first whose assertion failed.
func (b *bed) test(ctx context.Context, name string, packages []string, run string) (by string, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit+time.Minute)
	defer cancel()
	args := []string{"test", "-json", "-count=1", "-vet=off", "-timeout", limit.String()}
	if run != "" {
		args = append(args, "-run", run)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = b.dir
	cmd.WaitDelay = time.Second
	text, err := cmd.Output()
	if b.output != "" {
		if err := os.WriteFile(filepath.Join(b.output, name+".json"), text, 0o644); err != nil {
			return "", err
		}
	}
	return verdict(text, err)
}

// event is a line of go test -json.
type event struct{ Action, Package, Test, Output string }

// verdict finds the first failed assertion in what go test -json has printed.
func verdict(text []byte, err error) (string, error) {
	var failed, trouble string
	var lines []event
	for line := range bytes.Lines(text) {
		var e event
		if json.Unmarshal(line, &e) != nil {
			continue
		}
		switch {
		case e.Action == "build-fail" || e.Action == "build-output" && trouble == "" && !strings.HasPrefix(e.Output, "#"):
			trouble = "it does not build: " + strings.TrimSpace(e.Output)
		case e.Action == "output":
			lines = append(lines, e)
		}
	}
	for i, e := range lines {
		line := strings.TrimSpace(e.Output)
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			trouble = line
			lines = lines[:i]
			break
		}
	}
	for i, e := range lines {
		name, ok := strings.CutPrefix(strings.TrimSpace(e.Output), "--- FAIL: ")
		// A test that panics is said to have failed, right before its panic.
		if ok && failed == "" && !(trouble != "" && i == len(lines)-1) {
			failed, _, _ = strings.Cut(name, " ")
		}
	}
	switch {
	case failed != "":
		return failed, nil
	case trouble != "":
		return "", errors.New(trouble)
	case err != nil:
		return "", fmt.Errorf("go test: %w%s", err, stderr(err))
	}
	return "", errPassed
}

func stderr(err error) string {
	var exit *exec.ExitError
	if !errors.As(err, &exit) || len(exit.Stderr) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(exit.Stderr)), "\n")
	return ": " + lines[slices.IndexFunc(lines, func(l string) bool { return l != "" })]
}
