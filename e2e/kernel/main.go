// Command kernel runs programs under a kernel that has WireGuard, whatever this
// machine's has: Debian's, in a small virtual machine (QEMU, software emulation) that
// sees this machine's files, may change none of them, and ends with the program.
//
//	kernel pack DIR              from what unpack.sh left in DIR: what the machine starts with
//	kernel exec DIR PROG ARG...  runs PROG in it
//	kernel test DIR PROG ARG...  the same for `go test -exec`: a skipped test fails
//	kernel init                  inside: the machine's first process, and its modprobe
//
// Nothing is installed. Never measure speed inside: it is 10 to 50 times slower.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if os.Getpid() == 1 {
		guest()
	}
	err := errors.New("want: kernel pack DIR | kernel exec DIR PROG ARG... | kernel test DIR PROG ARG...")
	args := os.Args[1:]
	switch {
	case len(args) == 3 && args[0] == "-q" && args[1] == "--": // as the kernel calls modprobe
		err = loadModule(args[2])
	case len(args) == 2 && args[0] == "pack":
		err = pack(args[1])
	case len(args) >= 3 && args[0] == "exec":
		var code int
		if code, err = run(args[1], args[2:], os.Stdout, os.Stderr); err == nil {
			os.Exit(code)
		}
	case len(args) >= 3 && args[0] == "test":
		var code int
		out, errs := verdict{to: os.Stdout}, verdict{to: os.Stderr}
		if code, err = run(args[1], append(args[2:], "-test.v"), &out, &errs); err == nil {
			os.Exit(out.code(errs.code(code)))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernel:", err)
		os.Exit(125)
	}
}

// limit is how long a machine may live. WEFT_VM_LIMIT, a duration, overrides it.
const limit = 5 * time.Minute

func run(dir string, args []string, stdout, stderr io.Writer) (int, error) {
	life := limit
	if s := os.Getenv("WEFT_VM_LIMIT"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, fmt.Errorf("WEFT_VM_LIMIT: %w", err)
		}
		life = d
	}
	cwd, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, life, fmt.Errorf("the program has not ended in %s", life))
	defer cancel()
	m := machine{dir: dir, job: job{Args: args, Dir: cwd, Env: os.Environ()}, stdout: stdout, stderr: stderr}
	return m.run(ctx)
}
