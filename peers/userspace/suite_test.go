package userspace

import (
	"log/slog"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/peerstest"
)

func TestTraffic(t *testing.T) {
	needTUN(t)
	t.Parallel()
	peerstest.RunTraffic(t, func(t *testing.T, at peerstest.Site) peers.Device {
		return open(t, Config{
			Plane: at.Plane, Bind: nsBind{conn.NewDefaultBind(), at.Underlay},
			Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
	})
}
