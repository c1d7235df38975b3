package resolvconf

import "context"

func backends() map[string]backend {
	return map[string]backend{ByResolverDir: resolverDir{}, ByScutil: scutil{}}
}

// ways returns the ways that this system has, best first.
func ways(context.Context, Config, *state) []string { return []string{ByResolverDir, ByScutil} }

// revertWithoutState is for a state that was lost.
func revertWithoutState(cfg Config) (note string, err error) {
	return resolverDir{}.revertWithoutState(cfg)
}
