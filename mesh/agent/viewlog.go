package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// The changes since the view in cacheFile, its base, are in a log beside it, so that a
// change of a large view costs what has changed:
//
//	header: "weftlog1"    sum of the base's view    SHA-256 of both
//	record: length u32    CRC-32C u32               sum    change, as JSON, of that length
//
// The CRC is that of the sum before and the length. A sum is the SHA-256 of the sum
// before and the change; before the first record it is that of the header. So a record
// counts only behind all that were written before it, on the base that they are for.
//
// Every record is on the disk (fdatasync) before the next one is written: a crash can
// spoil the last one alone, and then the view before it is the one. What is wrong
// further up is damage, and the files are refused as a whole. A new base is written
// first and takes the log away after that; a log of an earlier base is passed over.
const (
	logFile    = "view.log"
	logMagic   = "weftlog1"
	headerSize = len(logMagic) + 2*sha256.Size
	recordHead = 8 + sha256.Size
)

type sum [sha256.Size]byte

// logged is one change of the view in force.
type logged struct {
	From   mesh.Revision `json:"from,omitzero"` // of the view before it; in a tail
	Saved  time.Time     `json:"saved"`
	Format int           `json:"format"` // of the view after it
	Delta  mesh.Delta    `json:"delta"`
}

// logHeader begins the log of a base.
func logHeader(base sum) []byte {
	b := append([]byte(logMagic), base[:]...)
	own := sha256.Sum256(b)
	return append(b, own[:]...)
}

// appendLogged appends a record to a log whose last sum is before.
func appendLogged(b []byte, before sum, l logged) ([]byte, sum, error) {
	body, err := json.Marshal(l)
	if err != nil {
		return b, before, err
	}
	b, after := appendRecord(b, before, body)
	return b, after, nil
}

func appendRecord(b []byte, before sum, body []byte) ([]byte, sum) {
	after := chained(before, body)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, lengthCheck(before, uint32(len(body))))
	b = append(b, after[:]...)
	return append(b, body...), after
}

func chained(before sum, body []byte) (after sum) {
	h := sha256.New()
	h.Write(before[:])
	h.Write(body)
	h.Sum(after[:0])
	return after
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func lengthCheck(before sum, length uint32) uint32 {
	return crc32.Checksum(binary.BigEndian.AppendUint32(before[:], length), castagnoli)
}

// readLog returns the changes in a log that are for a base. dropped is what was left
// out and why, "" if nothing was. An error wraps errDamaged.
func readLog(b []byte, base sum) (changes []logged, dropped string, err error) {
	if len(b) == 0 {
		return nil, "", nil
	}
	if len(b) < headerSize {
		return nil, fmt.Sprintf("the log has %d bytes only: it was being made", len(b)), nil
	}
	header, rest := b[:headerSize], b[headerSize:]
	own := sha256.Sum256(header[:headerSize-sha256.Size])
	sound := bytes.Equal(own[:], header[headerSize-sha256.Size:])
	if !sound && zeros(rest) { // it is on the disk as soon as a record is
		return nil, "the log was being made", nil
	}
	if !bytes.HasPrefix(header, []byte(logMagic)) {
		return nil, "", fmt.Errorf("%w: the log begins with %q, this program writes %q", errDamaged, header[:len(logMagic)], logMagic)
	}
	if !sound {
		return nil, "", fmt.Errorf("%w: the checksum of the log's header is another one", errDamaged)
	}
	if !bytes.Equal(base[:], header[len(logMagic):][:sha256.Size]) {
		return nil, fmt.Sprintf("the log of %d bytes is of an earlier view", len(b)), nil
	}
	for before := sum(own); len(rest) > 0; {
		l, size, after, err := readRecord(rest, before)
		if errors.Is(err, errTorn) {
			return changes, fmt.Sprintf("the last record, at byte %d of the log: %v", len(b)-len(rest), err), nil
		}
		if err != nil {
			return nil, "", fmt.Errorf("%w, in the record at byte %d of the log", err, len(b)-len(rest))
		}
		changes, rest, before = append(changes, l), rest[size:], after
	}
	return changes, "", nil
}

// errTorn says that a record is not as it was to be because its writing was cut short.
var errTorn = errors.New("its writing was cut short")

// readRecord reads the first record of b, of size bytes, behind one with the sum
// before.
func readRecord(b []byte, before sum) (l logged, size int, after sum, err error) {
	if len(b) < recordHead || zeros(b) {
		return l, 0, after, errTorn
	}
	length := binary.BigEndian.Uint32(b)
	if binary.BigEndian.Uint32(b[4:]) != lengthCheck(before, length) {
		if zeros(b[8:]) {
			return l, 0, after, errTorn
		}
		return l, 0, after, fmt.Errorf("%w: the checksum of its length is another one", errDamaged)
	}
	if uint64(length) > uint64(len(b)-recordHead) {
		return l, 0, after, errTorn
	}
	size = recordHead + int(length)
	body := b[recordHead:size]
	after = chained(before, body)
	switch {
	case bytes.Equal(after[:], b[8:recordHead]):
	case zeros(b[size:]):
		return l, 0, after, errTorn
	default:
		return l, 0, after, fmt.Errorf("%w: the checksum is another one", errDamaged)
	}
	if err := json.Unmarshal(body, &l); err != nil {
		return l, 0, after, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return l, size, after, nil
}

// zeros is what a file system may leave where it had no time to write.
func zeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// replay returns the view after changes, which v is not to be seen as any more.
func replay(v *mesh.View, changes []logged) (*mesh.View, error) {
	steps := make([]mesh.Delta, len(changes))
	at := v.Revision
	for i, c := range changes {
		if !follows(c.Delta.Revision, at) {
			return nil, fmt.Errorf("%w: a change to revision %s of a view of revision %s", errDamaged, c.Delta.Revision, at)
		}
		steps[i], at = c.Delta, c.Delta.Revision
	}
	if len(changes) == 0 {
		return v, nil
	}
	next := v.Apply(mesh.MergeDeltas(steps))
	next.Format = changes[len(changes)-1].Format
	return &next, nil
}
