package userspace

import (
	"time"

	"golang.zx2c4.com/wireguard/device"
)

const (
	// overdueAfter is how long a message may wait in the socket's buffer when more than
	// overdueBytes are before it. Where the receiver is the bottleneck, it is there that
	// bulk traffic queues, in bursts, and all else with it. Beside four streams of TCP on
	// two processors a round trip took 5.1 to 6.4 ms without this (99th percentile 13 to
	// 15) and takes 3.2 (9 to 10), at 4.2 to 4.6 and 4.1 to 4.3 Gbit/s; where other
	// programs want both processors, 9 to 12 (31 to 49) and 5 to 7 (15 to 20). A buffer of
	// a quarter gave nearly as much, but what it lost was whatever came last, one ping in
	// a hundred too.
	overdueAfter = 2 * time.Millisecond
	// overdueBytes is what arrives in overdueAfter at 4 Gbit/s. Without this limit
	// bulk traffic of any speed would lose packets whenever other programs take the
	// processor for some milliseconds, and over a long way it takes seconds to be fast
	// again after each.
	overdueBytes = 1 << 20
	// bulkSize is the least size of a packet that may be dropped: a full one of the
	// narrowest link that IPv6 knows. TCP fills its packets. Most others do not: QUIC
	// begins with 1,200 bytes, and keeps to them where the path is not probed.
	bulkSize = 1280 + device.MessageTransportSize
	// bulkCount is how many of them have to be in one message.
	bulkCount = 9
)

// overdue drops a part of the bulk traffic that waited too long for us, behind too
// much: of each two messages of many full packets (UDP_GRO) one. That makes room at
// once, and tells the senders. No packet is dropped that came by itself or is small,
// however long it waited: a stop of the machine costs no ping, no datagram and no
// handshake. What is inside the packets is not known here, but who asks first has not
// spent the time to decrypt them.
//
// Algorithms that look for a standing queue (CoDel, RFC 8289) find none: between bursts
// the buffer is empty.
type overdue struct {
	seen int

	total int64               // bytes received, ever
	reads [overdueReads]batch // the last ones, in turn
	next  int
}

// overdueReads is how many reads of the socket are remembered: at most half a megabyte
// each, and seldom less than one message.
const overdueReads = 64

type batch struct {
	at    time.Time
	total int64 // bytes received before it
}

// read says that bytes were received at once.
func (o *overdue) read(now time.Time, bytes int) {
	o.reads[o.next%overdueReads] = batch{now, o.total}
	o.next++
	o.total += int64(bytes)
}

// ahead is how many bytes have been read since a moment: for a message that came then,
// what was before it, and what was read with it. If that is longer ago than what is
// remembered, it is what was read since the oldest that is.
func (o *overdue) ahead(since time.Time) int64 {
	before := o.total
	for i := o.next - 1; i >= max(0, o.next-overdueReads); i-- {
		b := o.reads[i%overdueReads]
		if b.at.Before(since) {
			break
		}
		before = b.total
	}
	return o.total - before
}

// skip returns how many bytes at the beginning of a message are to be dropped. It came
// at a time, and is made of packets of size bytes, but for the last one, which may be
// smaller, and which stays: senders let a ping ride behind a burst.
func (o *overdue) skip(message, size int, came, now time.Time) int {
	if now.Sub(came) < overdueAfter || size < bulkSize || message/size < bulkCount || o.ahead(came) < overdueBytes {
		return 0
	}
	if o.seen++; o.seen%2 == 0 {
		return 0
	}
	return message / size * size
}
