package mesh

// Controllers returns the URLs of all controllers that a state knows of, and own,
// sorted, each once: what whoever is told where the controllers are is told.
func Controllers(own []string, s State) []string {
	return s.controllers(Deployment{Controllers: own})
}
