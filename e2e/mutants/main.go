// Command mutants plants mistakes in a copy of the tree, one at a time, and runs
// the tests that should notice. A mistake counts as caught only if an assertion
// fails: a patch that does not apply, a tree that does not build, a panic and a
// timeout count as missed.
//
//	go run ./e2e/mutants [--only REGEXP] [DIRECTORY]
//
// The mistakes are patches, *.patch in the directory (default e2e/mutants): a head
// as patch.go describes it, then a unified diff.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		stop()
		os.Exit(1)
	}
}

// errMissed says that a mistake was not noticed.
var errMissed = errors.New("not every mutant was caught")

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	only := flags.String("only", "", "run only those whose name matches the regular expression")
	keep := flags.String("output", "", "directory for what the tests print")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir := "e2e/mutants"
	if flags.NArg() > 0 {
		dir = flags.Arg(0)
	}
	patches, err := load(dir)
	if err != nil {
		return err
	}
	name, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("--only: %w", err)
	}
	bed, err := newBed(ctx, ".")
	if err != nil {
		return err
	}
	defer bed.close()
	bed.output = *keep
	caught, all := 0, 0
	for _, p := range patches {
		if !name.MatchString(p.name) {
			continue
		}
		all++
		start := time.Now()
		by, err := bed.try(ctx, p)
		took := time.Since(start).Round(time.Second)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			fmt.Fprintf(out, "MISSED  %-28s %s (%s, %s)\n", p.name, p.what, err, took)
			continue
		}
		caught++
		fmt.Fprintf(out, "caught  %-28s %s (%s, %s)\n", p.name, p.what, by, took)
	}
	fmt.Fprintf(out, "mutants: caught %d of %d\n", caught, all)
	if caught < all {
		return errMissed
	}
	return nil
}

// load reads the patches of a directory, in order.
func load(dir string) ([]patch, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s holds no *.patch", dir)
	}
	var out []patch
	for _, file := range files {
		if file, err = filepath.Abs(file); err != nil {
			return nil, err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		p := parse(string(text))
		p.file, p.name = file, strings.TrimSuffix(filepath.Base(file), ".patch")
		out = append(out, p)
	}
	return out, nil
}
