package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// BuildConfig says which programs to build.
type BuildConfig struct {
	Dir      string   // where to put them; it is made
	Packages []string // import paths of main packages, or paths from the working directory
	Race     bool     // with the race detector
}

// Binaries is a directory of programs.
type Binaries struct{ dir string }

// Dir is the directory.
func (b Binaries) Dir() string { return b.dir }

// Path is the file of a program, named after the last part of its package's path.
func (b Binaries) Path(name string) string { return filepath.Join(b.dir, name) }

// Build builds programs with the go command, all at once; TestMain is the place to
// call it, once for a package's tests. Where WEFT_BIN is set in the environment,
// nothing is built: it names a directory that must hold them all.
func Build(ctx context.Context, cfg BuildConfig) (Binaries, error) {
	if dir := os.Getenv("WEFT_BIN"); dir != "" {
		return prebuilt(dir, cfg.Packages)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return Binaries{}, fmt.Errorf("build programs: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("build programs: %w", err)
	}
	args := []string{"build", "-o", dir + string(filepath.Separator)}
	if cfg.Race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, cfg.Packages...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("build %s: %w\n%s", strings.Join(cfg.Packages, " "), err, out)
	}
	return Binaries{dir}, nil
}

func prebuilt(dir string, packages []string) (Binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Binaries{}, err
	}
	var errs []error
	for _, p := range packages {
		if _, err := exec.LookPath(filepath.Join(dir, path.Base(p))); err != nil {
			errs = append(errs, fmt.Errorf("look for programs in WEFT_BIN=%s: %w", dir, err))
		}
	}
	return Binaries{dir}, errors.Join(errs...)
}
