package lab

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// SetClock makes the wall clock of a running process, and of nobody else, read as
// much more (or less) than the machine's from now on: a jump. 0 ends it. Time that
// only passes (CLOCK_MONOTONIC: timers, durations) goes on as it did, as when
// somebody sets a clock. offset is in whole seconds.
//
// Linux has no namespace for the wall clock. A program that reads it calls code that
// the kernel maps into the process (vdso(7)); that code is replaced in this one
// process by code that asks the kernel and adds the offset. What the process starts
// has the machine's clock.
func (p *Process) SetClock(offset time.Duration) error {
	if err := p.setClock(int64(offset / time.Second)); err != nil {
		return fmt.Errorf("set the clock of %s on %s: %w", p.name, p.host.name, err)
	}
	return nil
}

// CheckClock returns nil if SetClock can work here, or else a sentence that says what
// is missing.
func CheckClock() error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("a process's clock is set by code for amd64, and this is %s", runtime.GOARCH)
	}
	for _, arg := range []string{"proc_mem.force_override=never", "vdso=0"} {
		if line, err := os.ReadFile("/proc/cmdline"); err == nil && strings.Contains(string(line), arg) {
			return fmt.Errorf("a process's clock is set in its memory, and the kernel was started with %s", arg)
		}
	}
	return nil
}

func (p *Process) setClock(seconds int64) error {
	if err := CheckClock(); err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", p.Pid()), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	from, to, err := vdsoOf(p.Pid())
	if err != nil {
		return err
	}
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, from); err != nil {
		return err
	}
	at, size, err := clockFunction(image)
	if err != nil {
		return err
	}
	stub := clockStub(seconds)
	if size < len(stub) {
		return fmt.Errorf("the kernel's code for reading the clock has %d bytes, and %d are needed", size, len(stub))
	}
	// Nobody may be in the code while it is replaced.
	if err := p.Pause(); err != nil {
		return err
	}
	err = Await(context.Background(), "no thread to be reading the clock", p.host.lab.cfg.Grace, func(context.Context) error {
		busy, err := inRange(p.Pid(), from, to)
		if err != nil || !busy {
			return Hopeless(err)
		}
		return errors.Join(errors.New("one is"), p.Continue(), p.Pause())
	})
	if err == nil {
		_, err = mem.WriteAt(stub, from+int64(at))
	}
	return errors.Join(err, p.Continue())
}

// vdsoOf returns where a process has the kernel's code.
func vdsoOf(pid int) (from, to int64, err error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		if strings.HasSuffix(lines.Text(), "[vdso]") {
			_, err := fmt.Sscanf(lines.Text(), "%x-%x", &from, &to)
			return from, to, err
		}
	}
	return 0, 0, errors.Join(errors.New("the kernel maps no code into it"), lines.Err())
}

// clockFunction finds the function that reads clocks in the kernel's code.
func clockFunction(image []byte) (at, size int, err error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, 0, err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, 0, err
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			return int(s.Value), int(s.Size), nil
		}
	}
	return 0, 0, errors.New("the kernel's code has no __vdso_clock_gettime")
}

// clockStub is clock_gettime(2) with an offset to CLOCK_REALTIME, which is 0:
//
//	mov  eax, 228        ; clock_gettime
//	syscall
//	test edi, edi        ; which clock
//	jne  out
//	mov  rcx, [offset]
//	add  [rsi], rcx      ; tv_sec
//	out: ret
//	offset: (8 bytes)
func clockStub(seconds int64) []byte {
	code := []byte{
		0xb8, 0xe4, 0, 0, 0,
		0x0f, 0x05,
		0x85, 0xff,
		0x75, 0x0a,
		0x48, 0x8b, 0x0d, 0x04, 0, 0, 0,
		0x48, 0x01, 0x0e,
		0xc3,
	}
	return binary.LittleEndian.AppendUint64(code, uint64(seconds))
}

// inRange reports whether a thread of a stopped process is to go on between from and
// to.
func inRange(pid int, from, to int64) (bool, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		return false, err
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return false, err
		}
		// "NUMBER ARGUMENTS... SP PC", "-1 SP PC", or "running" of one that has not
		// stopped yet.
		fields := strings.Fields(string(b))
		if len(fields) < 3 {
			return true, nil
		}
		pc, err := strconv.ParseInt(strings.TrimPrefix(fields[len(fields)-1], "0x"), 16, 64)
		if err != nil {
			return false, fmt.Errorf("%s: %w", task, err)
		}
		if from <= pc && pc < to {
			return true, nil
		}
	}
	return false, nil
}
