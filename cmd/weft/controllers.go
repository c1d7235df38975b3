package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// A context knows all controllers of its mesh: when it is added, once a day, and
// when another one than the first had to answer, the list is asked for and kept.

// learnAfter is how old a context may become before the controllers are asked for.
const learnAfter = 24 * time.Hour

// learnTimeout bounds that: it is a courtesy.
const learnTimeout = 3 * time.Second

// learn brings the controllers of a context up to date, if that is due. Nothing
// depends on it, so nothing is said if it fails.
func learn(cmd *cobra.Command, cred credential, client *api.Client) {
	dir, err := contextsDir()
	if err != nil || cred.path != dir.file(nameOf(cred.path)) {
		return // a file of the user's own stays as it is
	}
	info, err := os.Stat(cred.path)
	if err != nil || client.Server() == strings.TrimSuffix(cred.Controllers[0], "/") && time.Since(info.ModTime()) < learnAfter {
		return
	}
	list, ok := askControllers(cmd.Context(), client, cred.Controllers)
	if !ok {
		return
	}
	before := cred.Controllers
	if cred.Controllers = list; replaceSecret(cred) == nil && !sameSet(before, list) {
		cli.Notef(cmd, "note: context %s knows these controllers now: %s", nameOf(cred.path), strings.Join(list, ", "))
	}
}

// askControllers returns all controllers: the one that answers first, then those of
// the mesh, then those that were known, which may be the only ones that are reached
// from here.
func askControllers(ctx context.Context, client *api.Client, known []string) ([]string, bool) {
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	var info api.MeshInfo
	if err := client.Do(ctx, http.MethodGet, "/v1/mesh", nil, &info); err != nil {
		return nil, false
	}
	if len(info.Controllers) > 0 && checkServers(info.Controllers) != nil {
		return nil, false
	}
	var out []string
	for _, s := range slices.Concat([]string{client.Server()}, info.Controllers, known) {
		if s = strings.TrimSuffix(s, "/"); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, true
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// replaceSecret writes a credential again where it was read from. Another weft reads
// the old one or the new one.
func replaceSecret(cred credential) error {
	text, err := yaml.Marshal(cred)
	if err != nil {
		return err
	}
	return enroll.WriteFile(filepath.Clean(cred.path), text)
}
