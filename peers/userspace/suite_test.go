package userspace

import (
	"log/slog"
	"testing"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/peerstest"
)

func TestTraffic(t *testing.T) {
	needTUN(t)
	t.Parallel()
	peerstest.RunTraffic(t, "tuntap", func(t *testing.T, at peerstest.Site) peers.Device {
		return open(t, Config{
			Plane: at.Plane, Bind: nsBind{newBind(), at.Underlay},
			Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
	})
}
