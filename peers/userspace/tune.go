package userspace

import (
	"os"
	"runtime"
	"runtime/debug"
)

// memoryLimit is what a tuned process keeps to, unless that cannot be: its buffers are
// fewer, see inFlight, and thousands of peers more.
const memoryLimit = 96 << 20

// Tune sets Go's runtime up for a process that holds a device and does nothing else.
// GOMAXPROCS and GOMEMLIMIT of the environment go before it.
//
// A packet passes through six goroutines. On one processor that costs little; on many
// it wakes a thread each time, and small packets cost half as much again. So the device
// takes half of the processors: those who send and receive need the others.
func Tune() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
