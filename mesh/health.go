package mesh

import "time"

// Health is the last transition that a machine's host has observed: since when its
// checks pass, or fail. A machine with checks and without a Health has not passed
// yet.
type Health struct {
	Org     string    `json:"org"`
	Machine string    `json:"machine"` // its ID
	Passing bool      `json:"passing"`
	Since   time.Time `json:"since"`
	Note    string    `json:"note,omitempty"` // why it fails
}

// MaxHealthNote bounds a Health's Note, in bytes.
const MaxHealthNote = 200

// Serves reports whether a machine is to be in names, as far as its state goes: it
// is started and nobody has cordoned it.
func (m Machine) Serves() bool { return m.State == StateStarted && !m.Cordoned }

// Healthy reports whether a machine passes its checks, of which h is the last that
// was seen; ok is false if nothing was. One without checks is healthy.
func (m Machine) Healthy(h Health, ok bool) bool { return len(m.Checks) == 0 || ok && h.Passing }
