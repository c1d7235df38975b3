package userspace

import (
	"time"

	"golang.zx2c4.com/wireguard/device"
)

const (
	// overdueAfter is how long a message may wait in the socket's buffer. Where the
	// receiver is the bottleneck, it is there that bulk traffic queues, in bursts, and
	// all else with it. Beside four streams of TCP (BBR) on two processors a round trip
	// took 4.4 to 5.4 ms without this (99th percentile 14 to 16) and takes 2.8 to 4.0
	// (8 to 12), at 3.9 to 4.6 and 3.8 to 4.5 Gbit/s. A buffer of a quarter gave 3.8 to
	// 4.6 (10), but what it lost was whatever came last, one ping in a hundred too.
	overdueAfter = 2 * time.Millisecond
	// bulkSize is the least size of a packet that may be dropped: a full one of the
	// narrowest link that IPv6 knows. TCP fills its packets. Most others do not: QUIC
	// begins with 1,200 bytes, and keeps to them where the path is not probed.
	bulkSize = 1280 + device.MessageTransportSize
	// bulkCount is how many of them have to be in one message.
	bulkCount = 9
)

// overdue drops a part of the bulk traffic that waited too long for us: of each two
// messages of many full packets (UDP_GRO) one. That makes room at once, and tells the
// senders. No packet is dropped that came by itself or is small, however long it
// waited: a stop of the machine costs no ping, no datagram and no handshake. What is
// inside the packets is not known here, but who asks first has not spent the time to
// decrypt them.
//
// Algorithms that look for a standing queue (CoDel, RFC 8289) find none: between bursts
// the buffer is empty.
type overdue struct{ seen int }

// skip returns how many bytes at the beginning of a message are to be dropped. It is
// made of packets of size bytes, but for the last one, which may be smaller, and which
// stays: senders let a ping ride behind a burst.
func (o *overdue) skip(message, size int, waited time.Duration) int {
	if waited < overdueAfter || size < bulkSize || message/size < bulkCount {
		return 0
	}
	if o.seen++; o.seen%2 == 0 {
		return 0
	}
	return message / size * size
}
