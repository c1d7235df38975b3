package agent

import (
	"context"
	"errors"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
)

// paced times what a check costs is the least time between two of them: a twentieth
// of a core, however large the mesh is.
const paced = 20

// next brings the system up to date: by what changed alone, if that is all that there
// is to do, and else by a whole pass, which is due at the start, after an error, after
// a view that came as a whole, on an alarm, and every tick. It returns what is in
// force now, nil if nothing was done, and how long nothing has to be done without an
// event.
func (l *loop) next(ctx context.Context) (a *applied, pause time.Duration, err error) {
	a, pause, err = l.upToDate(ctx)
	if wait := l.knocks(ctx, time.Now()); wait > 0 {
		pause = min(pause, wait)
	}
	return a, pause, err
}

func (l *loop) upToDate(ctx context.Context) (a *applied, pause time.Duration, err error) {
	v, steps, whole := l.feed.take()
	if v == nil {
		return nil, l.timing.Tick, nil
	}
	now := time.Now()
	l.hear(ctx, now)
	doubt := l.repair(now)
	alarmed, rest := l.alarms.take(now)
	news := l.machines.takeNews()
	if !whole && !alarmed && l.progress != nil && now.Before(l.due) {
		if a, err = l.little(ctx, v, steps, news); err == nil {
			pause = min(time.Until(l.due), time.Until(l.look))
			if rest > 0 {
				pause = min(pause, rest)
			}
			if !doubt.IsZero() {
				pause = min(pause, time.Until(doubt))
			}
			return a, max(pause, 0), nil
		}
		if ctx.Err() != nil {
			return nil, 0, err
		}
		if !errors.Is(err, errNeedsPass) {
			l.log.Info("a whole pass is due", "why", err)
		}
	}
	done, err := l.pass(ctx, v.View())
	pause = max(l.timing.Tick, paced*time.Since(now))
	if err != nil {
		pause = max(min(time.Second, l.timing.Tick), paced/2*time.Since(now))
	}
	l.due = time.Now().Add(pause)
	l.looked(now)
	l.seen = v
	pause = min(pause, time.Until(l.look))
	if len(l.doubts) > 0 {
		pause = min(pause, settleTime)
	}
	return &done, max(pause, 0), err
}

// little is next without a whole pass. It fails if there has to be one.
func (l *loop) little(ctx context.Context, v *version, steps []mesh.Delta, news map[string]bool) (*applied, error) {
	if len(steps)+len(news) > 0 || l.progress.retires(time.Now()) {
		a, err := l.follow(ctx, v, steps, news, l.reach())
		return &a, err
	}
	if now := time.Now(); !now.Before(l.look) {
		strange, err := l.strange(ctx)
		l.looked(now)
		if err != nil {
			return nil, err
		}
		if strange {
			l.alarms.strike("link "+l.link, now)
			return nil, errNeedsPass
		}
	}
	return nil, nil
}

// looked notes that what tells nobody of its changes was looked at, from began to now.
func (l *loop) looked(began time.Time) {
	l.look = time.Now().Add(max(l.timing.Look, paced*time.Since(began)))
}

// strange looks at what tells nobody of its changes, the device, and whether the
// firewall's rules have changed unseen.
func (l *loop) strange(ctx context.Context) (bool, error) {
	if moved, err := l.system.Strange(ctx); moved || err != nil {
		return moved, err
	}
	device, there := l.system.Opened()
	if !there {
		return true, nil
	}
	have, err := device.Config(ctx)
	if err != nil {
		return false, err
	}
	return len(peers.Diff(have, l.progress.want.config(l.tunnels.key, l.tunnels.port))) > 0, nil
}
