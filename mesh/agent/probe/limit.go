package probe

import "time"

// limiter lets through so many a second, and a tenth of a second's at once. The zero
// value lets nothing through.
type limiter struct {
	perSecond float64
	have      float64
	at        time.Time
}

func newLimiter(perSecond int) *limiter { return &limiter{perSecond: float64(perSecond)} }

// take reports whether one more may pass now.
func (l *limiter) take(now time.Time) bool {
	most := max(l.perSecond/10, 1)
	if l.at.IsZero() {
		l.have = most
	} else {
		l.have = min(l.have+now.Sub(l.at).Seconds()*l.perSecond, most)
	}
	l.at = now
	if l.have < 1 || l.perSecond <= 0 {
		return false
	}
	l.have--
	return true
}
