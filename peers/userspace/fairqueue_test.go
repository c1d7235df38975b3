package userspace

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// numbered makes a frame of a flow, that says which of it it is.
func numbered(flow byte, n uint32, size int) frame {
	f := make(frame, max(size, frameHeader+ip6Header+4))
	p := f.packet()
	p[0], p[6], p[23] = 6<<4, protoUDP, flow
	binary.BigEndian.PutUint32(p[ip6Header:], n)
	return f
}

func (f frame) says() (flow byte, n uint32) {
	return f.packet()[23], binary.BigEndian.Uint32(f.packet()[ip6Header:])
}

// Who sends little does not wait behind who sends much.
func TestSparseFlowComesFirst(t *testing.T) {
	t.Parallel()
	q := newFairQueue(1 << 30)
	for i := range 40 {
		q.push(numbered(byte(i%4), uint32(i), 60_000))
	}
	for range 8 { // they have had their turn
		q.pop()
	}
	q.push(numbered(99, 0, 100))
	if flow, _ := q.pop().says(); flow != 99 {
		t.Errorf("flow %d comes before the ping", flow)
	}
}

// Two flows that always send get the same share in bytes, whatever their packets' size.
func TestSharesAreEqual(t *testing.T) {
	t.Parallel()
	q := newFairQueue(1 << 30)
	for i := range 60_000 {
		q.push(numbered(1, uint32(i), 1200))
		if i%60 == 0 {
			q.push(numbered(2, uint32(i), 60_000))
		}
	}
	bytes := map[byte]int{}
	for range 20_000 {
		f := q.pop()
		flow, _ := f.says()
		bytes[flow] += len(f)
	}
	if a, b := bytes[1], bytes[2]; a < b*95/100 || b < a*95/100 {
		t.Errorf("%d bytes of small packets, %d of large ones", a, b)
	}
}

// Whatever is done: a flow's frames come in their order, none twice, none lost while
// there is room, no more bytes than the limit are kept, and what is lost is of the
// flow that has most.
func TestFairQueueKeepsItsWord(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.SampledFrom([]int{1 << 30, 200_000}).Draw(t, "limit")
		q := newFairQueue(limit)
		var in, out, kept int
		sent, seen := map[byte]uint32{}, map[byte]uint32{}
		pop := func() bool {
			f := q.pop()
			if f == nil {
				return false
			}
			flow, n := f.says()
			if n <= seen[flow] || limit == 1<<30 && n != seen[flow]+1 {
				t.Fatalf("flow %d: number %d after %d", flow, n, seen[flow])
			}
			seen[flow] = n
			kept -= len(f)
			out++
			q.free(f)
			return true
		}
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "push") {
				flow := rapid.Byte().Draw(t, "flow") % 5
				size := rapid.SampledFrom([]int{100, 1200, 60_000}).Draw(t, "size")
				sent[flow]++
				in++
				kept += size
				q.push(numbered(flow, sent[flow], size))
				if q.bytes > limit {
					t.Fatalf("%d bytes are kept, the limit is %d", q.bytes, limit)
				}
			} else if !pop() && q.bytes != 0 {
				t.Fatalf("nothing comes, and %d bytes are there", q.bytes)
			}
			if limit == 1<<30 && q.bytes != kept {
				t.Fatalf("%d bytes are said to be there, not %d", q.bytes, kept)
			}
		}
		for pop() {
		}
		if q.bytes != 0 || limit == 1<<30 && in != out {
			t.Fatalf("%d bytes are left; %d came of %d", q.bytes, out, in)
		}
	})
}

// The largest flow pays for a full queue, with its oldest frames.
func TestLargestFlowLoses(t *testing.T) {
	t.Parallel()
	q := newFairQueue(10_000)
	q.push(numbered(1, 1, 1000))
	for i := range 20 {
		q.push(numbered(2, uint32(i), 1000))
	}
	var got []string
	for f := q.pop(); f != nil; f = q.pop() {
		flow, n := f.says()
		got = append(got, fmt.Sprint(flow, ":", n))
	}
	want := []string{"1:1", "2:11", "2:12", "2:13", "2:14", "2:15", "2:16", "2:17", "2:18", "2:19"}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
}
