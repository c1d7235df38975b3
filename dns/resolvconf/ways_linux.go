package resolvconf

import (
	"context"
	"os"
	"slices"
)

func backends() map[string]backend {
	return map[string]backend{ByResolved: resolved{}, ByResolvconf: program{}, ByFile: file{}}
}

// ways returns the ways that this system has, best first. st is what is on disk.
func ways(ctx context.Context, cfg Config, st *state) (list []string) {
	text := textWithoutUs(cfg, st)
	if resolvedAnswers(ctx, cfg, text) {
		list = append(list, ByResolved)
	}
	if resolvconfRules(cfg, text) {
		list = append(list, ByResolvconf)
	}
	return append(list, ByFile)
}

// textWithoutUs is what resolv.conf says, or said before a text of ours took its place.
func textWithoutUs(cfg Config, st *state) []byte {
	text, _ := os.ReadFile(cfg.path(resolvConf))
	if st != nil && slices.Contains(st.Wrote, string(text)) {
		text, _ = os.ReadFile(cfg.originalPath())
	}
	if original, ours := embedded(text); ours {
		text = original
	}
	return text
}

// revertWithoutState is for a state that was lost.
func revertWithoutState(cfg Config) (note string, err error) { return file{}.revertWithoutState(cfg) }
