package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/backup"
)

// A backup is of the past, and the mesh went on without it. What it does not know
// of must not be given a second time:
//
//   - Numbers that were given since. Every counter goes on from beyond a margin, and
//     so does a counter that did not exist yet (see floor). Numbers that rest were
//     perhaps taken: they rest anew, and for long.
//   - Tokens that were spent since. No token comes back.
//   - Revisions. The epoch grows, so every node takes a new snapshot.
const (
	marginNetworks = 1000
	marginHosts    = 1000
	marginSlots    = 256
	// restoredRest is how long a number rests that may have been taken since, and how
	// long at least an address is kept for a name: a host that is away that long has
	// to look after itself.
	restoredRest = 30 * 24 * time.Hour
)

// Keys of a restore: the mark of one that is not complete, and what a counter
// begins with that does not exist.
const (
	keyRestoring = "restoring"
	keyNextFloor = keyFloors + "slots"
	keyFloors    = "next/floor/"
	keyNextSlots = "next/slots/"
	keyResting   = "next/resting/"
)

// floor is where slots begin that have no counter: at Slot, of networks and hosts
// that existed before a restore, whose numbers are below these. Of later ones
// nothing was given, and they begin at 1.
type floor struct {
	Networks uint64 `json:"networks"`
	Hosts    uint64 `json:"hosts"`
	Slot     uint64 `json:"slot"`
}

// first is the slot that a counter begins with.
func (f floor) first(network uint64, host uint32) uint64 {
	if network < f.Networks && uint64(host) < f.Hosts {
		return max(f.Slot, 1)
	}
	return 1
}

// firstSlot is the slot that the counter of a host's share of a network begins with.
func (t *tx) firstSlot(ctx context.Context, network uint64, host uint32) (uint64, error) {
	if err := t.fetch(ctx, keyNextFloor); err != nil {
		return 0, err
	}
	var f floor
	kv := t.seen[keyNextFloor]
	if kv == nil {
		return f.first(network, host), nil
	}
	err := unmarshal(keyNextFloor, kv.Value, &f)
	return f.first(network, host), err
}

// raised is a counter, the next number to give, of a space up to most, beyond a
// margin. The margin is never more than half of what is left: a space that runs
// full is not used up by restores.
func raised(next, margin, most uint64) uint64 {
	next = max(next, 1)
	if next > most {
		return next
	}
	return next + min(margin, (most-next+2)/2)
}

// Restorable is a backup that was read to its end and can be restored.
type Restorable struct {
	backup.Summary
	Mesh mesh.Mesh // as it was
	CAs  []CARecord
	// Unreadable are the keys of values that this program cannot read. They were so
	// when the backup was taken.
	Unreadable []string

	plan            ipam.Plan
	record          []byte // of the mesh, as stored
	networks, hosts uint64 // counters
	floor           floor
}

// CheckBackup reads a backup to its end. It returns an error, which wraps
// backup.ErrDamaged unless it is another one, if that is not a whole backup of a mesh
// that this program knows.
func CheckBackup(from io.Reader) (*Restorable, error) {
	in, err := backup.NewReader(from)
	if err != nil {
		return nil, err
	}
	r := &Restorable{networks: 1, hosts: 1}
	if err := r.plan.UnmarshalText([]byte(in.Header().Prefix)); err != nil {
		return nil, fmt.Errorf("%w: %w", backup.ErrDamaged, err)
	}
	for {
		record, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := r.take(record); err != nil {
			return nil, err
		}
	}
	r.Summary = in.Summary()
	return r, r.check()
}

// take notes what a restore has to know of all records beforehand.
func (r *Restorable) take(record backup.Record) (err error) {
	switch key := record.Key; {
	case key == keyMesh:
		// The format first, as a controller would.
		reader := &Store{config: Config{Schema: Schema}}
		r.record = slices.Clone(record.Value)
		r.Mesh, err = reader.decodeMesh(r.record)
		return err
	case key == keyNextNetwork:
		err = json.Unmarshal(record.Value, &r.networks)
	case key == keyNextHost:
		err = json.Unmarshal(record.Value, &r.hosts)
	case key == keyNextFloor:
		err = json.Unmarshal(record.Value, &r.floor)
	case strings.HasPrefix(key, keyNextSlots):
		var next uint64
		err = json.Unmarshal(record.Value, &next)
	case strings.HasPrefix(key, keyResting):
		_, _, err = restingNumber(key)
	case strings.HasPrefix(key, keyCAs):
		var ca CARecord
		if err = json.Unmarshal(record.Value, &ca); err == nil {
			r.CAs = append(r.CAs, ca)
		}
	default:
		// What one record says of one thing concerns nothing else.
		if _, err := decode(key, record.Value, r.plan); err != nil || !json.Valid(record.Value) {
			r.Unreadable = append(r.Unreadable, key)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: value of %s: %w", backup.ErrDamaged, record.Key, err)
	}
	return nil
}

func (r *Restorable) check() error {
	switch {
	case r.record == nil:
		return fmt.Errorf("%w: there is no mesh in it", backup.ErrDamaged)
	case len(r.CAs) == 0:
		return fmt.Errorf("%w: there is no certificate authority in it", backup.ErrDamaged)
	case r.Mesh.Plan != r.plan || r.Mesh.Epoch != r.Header.Epoch:
		return fmt.Errorf("%w: its first line is of mesh %s in epoch %d, and it holds mesh %s in epoch %d",
			backup.ErrDamaged, r.plan, r.Header.Epoch, r.Mesh.Plan, r.Mesh.Epoch)
	case r.Mesh.Epoch == math.MaxUint32:
		return fmt.Errorf("%w: the mesh is in the last epoch that there is", ErrConflict)
	}
	return nil
}

// restingNumber takes the key of a number that rests apart.
func restingNumber(key string) (prefix string, number uint64, err error) {
	at := strings.LastIndexByte(key, '/') + 1
	_, text, _ := strings.Cut(key[at:], "-")
	number, err = strconv.ParseUint(text, 10, 64)
	return key[:at], number, err
}

// restored is what becomes of a record; ok is false if it does not come back, or
// only with the mesh record. now is the time of the restore.
func (r *Restorable) restored(record backup.Record, now time.Time) (_ backup.Record, ok bool, err error) {
	key := record.Key
	switch {
	case slices.Contains([]string{keyMesh, keyNextNetwork, keyNextHost, keyNextFloor, keyRestoring, keyMigrating}, key):
		return record, false, nil
	case slices.ContainsFunc(append([]string{keyTokens}, passing...), func(kind string) bool { return strings.HasPrefix(key, kind) }):
		return record, false, nil
	case strings.HasPrefix(key, keyNextSlots):
		var next uint64
		if err := unmarshal(key, record.Value, &next); err != nil {
			return record, false, err
		}
		record.Value, err = json.Marshal(raised(next, marginSlots, ipam.MaxSlot))
	case strings.HasPrefix(key, keyResting):
		var prefix string
		var number uint64
		if prefix, number, err = restingNumber(key); err == nil {
			record.Key = restingKey(prefix, now.Add(restoredRest), number)
		}
	case strings.HasPrefix(key, keyAddresses):
		if object, decodeErr := decode(key, record.Value, r.plan); decodeErr == nil {
			kept := object.(mesh.Reservation)
			if soonest := now.Add(restoredRest); kept.Until.Before(soonest) {
				kept.Until = soonest
			}
			record.Value, err = encode(record.Value, kept)
		}
	}
	return record, err == nil, err
}

// last are the records that make a restore complete.
func (r *Restorable) last(now time.Time) ([]backup.Record, mesh.Mesh, error) {
	m := r.Mesh
	m.Epoch = nextEpoch(r.Mesh.Epoch, now)
	networks, hosts := raised(r.networks, marginNetworks, m.Plan.MaxNetwork()), raised(r.hosts, marginHosts, ipam.MaxHost)
	text, err := encode(r.record, m)
	if err != nil {
		return nil, m, err
	}
	out := []backup.Record{{Key: keyMesh, Value: text}}
	for _, x := range []struct {
		key string
		v   any
	}{
		{keyNextNetwork, networks}, {keyNextHost, hosts},
		{keyNextFloor, floor{networks, hosts, raised(r.floor.Slot, marginSlots, ipam.MaxSlot)}},
	} {
		text, err := json.Marshal(x.v)
		if err != nil {
			return nil, m, err
		}
		out = append(out, backup.Record{Key: x.key, Value: text})
	}
	return out, m, nil
}
