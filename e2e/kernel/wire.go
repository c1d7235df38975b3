package main

import (
	"encoding/binary"
	"fmt"
	"io"
)

// job is what the machine is to do. It reads it from a file of the host's.
type job struct {
	Args []string
	Dir  string
	Env  []string
}

// What the machine says, on one line of its own (a virtio port, so that nothing
// changes line ends or mixes kernel messages in): a byte, a length of 4 bytes, data.
const (
	sayStdout = 'o'
	sayStderr = 'e'
	sayExit   = 'x' // the program's exit code, one byte; the last
	sayFailed = 'f' // why there was no program; the last
)

// maxSay bounds what one message holds.
const maxSay = 64 << 10

func say(w io.Writer, what byte, data []byte) error {
	b := append([]byte{what}, binary.BigEndian.AppendUint32(nil, uint32(len(data)))...)
	_, err := w.Write(append(b, data...))
	return err
}

// hear reads until the last message. The error is io.EOF if it does not come.
func hear(r io.Reader, stdout, stderr io.Writer) (code int, err error) {
	var head [5]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return 0, io.EOF
		}
		size := binary.BigEndian.Uint32(head[1:])
		if size > maxSay {
			return 0, fmt.Errorf("the machine says %d bytes at once", size)
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(r, data); err != nil {
			return 0, io.EOF
		}
		switch head[0] {
		case sayStdout:
			_, err = stdout.Write(data)
		case sayStderr:
			_, err = stderr.Write(data)
		case sayExit:
			if len(data) != 1 {
				return 0, fmt.Errorf("an exit code of %d bytes", len(data))
			}
			return int(data[0]), nil
		case sayFailed:
			return 0, fmt.Errorf("inside the machine: %s", data)
		default:
			return 0, fmt.Errorf("the machine says something of kind %q", head[0])
		}
		if err != nil {
			return 0, err
		}
	}
}
