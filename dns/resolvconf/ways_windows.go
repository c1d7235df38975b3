package resolvconf

import "context"

func backends() map[string]backend { return map[string]backend{ByNRPT: nrpt{}} }

// ways returns the ways that this system has, best first.
func ways(context.Context, Config, *state) []string { return []string{ByNRPT} }

// revertWithoutState is for a state that was lost: no key tells which link's it is.
func revertWithoutState(Config) (note string, err error) { return "", nil }
