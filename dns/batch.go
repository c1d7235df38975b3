package dns

import (
	"net"
	"net/netip"
)

// batch is how many packets one system call reads or writes at most. Under load it
// makes them cheap; when there is little to do, each call has one packet.
const batch = 32

// packets are what one loop reads and answers: some at a time.
type packets interface {
	// read waits for at least one packet. What was read before is gone.
	read() (n int, err error)
	// packet is one of those that were read, and who sent it.
	packet(i int) ([]byte, netip.AddrPort)
	// reply has an answer to one of them sent by flush. It is kept until then.
	reply(i int, answer []byte)
	// flush sends the replies, and returns how many could not be.
	flush() (unwritten int)
}

// single is packets one by one, for what has no batches.
type single struct {
	conn   net.PacketConn
	buf    []byte
	size   int
	from   net.Addr
	answer []byte // nil: none
}

func (s *single) read() (n int, err error) {
	s.size, s.from, err = s.conn.ReadFrom(s.buf)
	return 1, err
}

func (s *single) packet(int) ([]byte, netip.AddrPort) { return s.buf[:s.size], addrPortOf(s.from) }

func (s *single) reply(_ int, answer []byte) { s.answer = answer }

func (s *single) flush() (unwritten int) {
	if s.answer == nil {
		return 0
	}
	if _, err := s.conn.WriteTo(s.answer, s.from); err != nil {
		unwritten = 1
	}
	s.answer = nil
	return unwritten
}
