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
	goleak.VerifyTestMain(m)
}
