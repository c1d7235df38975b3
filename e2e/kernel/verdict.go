package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// verdict passes on what a test program prints with -test.v, and notes what makes a
// good end worth nothing: in the machine everything is there, so a test that is
// skipped is not one that cannot run, but one that nobody runs.
type verdict struct {
	to   io.Writer
	line []byte // so far
	no   []string
}

func (v *verdict) Write(b []byte) (int, error) {
	v.line = append(v.line, b...)
	for {
		line, rest, whole := bytes.Cut(v.line, []byte("\n"))
		if !whole {
			return v.to.Write(b)
		}
		if test, found := strings.CutPrefix(strings.TrimSpace(string(line)), "--- SKIP: "); found {
			v.no = append(v.no, test+" was skipped")
		}
		if bytes.HasPrefix(line, []byte("testing: warning: no tests to run")) {
			v.no = append(v.no, "no test ran")
		}
		v.line = rest
	}
}

// code is the program's exit code, or 1 if it should not have been 0.
func (v *verdict) code(of int) int {
	if of != 0 || len(v.no) == 0 {
		return of
	}
	fmt.Fprintf(v.to, "FAIL: in the virtual machine %s\n", strings.Join(v.no, ", "))
	return 1
}
