package attach

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain makes of the test's program what weft is: the machine's init, and in
// standIn `weft run` itself.
func TestMain(m *testing.M) {
	if code, ok := Init(); ok {
		os.Exit(code)
	}
	if os.Getenv(standInEnv) != "" {
		os.Exit(standIn())
	}
	// With -race each process that we start would wait a second before it ends.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	goleak.VerifyTestMain(m)
}
