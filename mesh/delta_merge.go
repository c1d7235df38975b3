package mesh

import (
	"maps"
	"slices"
	"strings"
)

// MergeDeltas returns one delta that leads where several lead, one after the other:
// a view after it equals the view after each of them in turn.
func MergeDeltas(list []Delta) Delta {
	if len(list) == 1 {
		return list[0]
	}
	var out Delta
	gone := map[string]bool{} // as in Removed
	for _, d := range list {
		out.Revision = d.Revision
		for _, key := range d.Removed {
			gone[key] = true
			if strings.HasPrefix(key, "coordinates/") {
				out.Coordinate = nil
			}
		}
		if d.Coordinate != nil && !removesCoordinate(d) {
			out.Coordinate = d.Coordinate
			maps.DeleteFunc(gone, func(key string, _ bool) bool { return strings.HasPrefix(key, "coordinates/") })
		}
		if d.Format != 0 {
			out.Format = d.Format
		}
		if d.Host != nil {
			out.Host = d.Host
		}
		if d.Client != nil {
			out.Client = d.Client
		}
		if d.Controllers != nil {
			out.Controllers = d.Controllers
		}
		if d.Roots != nil {
			out.Roots = d.Roots
		}
	}
	out.Regions = mergeLists(list, gone, "regions", func(d Delta) []Region { return d.Regions }, Region.key)
	out.Hosts = mergeLists(list, gone, "hosts", func(d Delta) []ViewHost { return d.Hosts }, ViewHost.key)
	out.Orgs = mergeLists(list, gone, "orgs", func(d Delta) []Org { return d.Orgs }, Org.key)
	out.Apps = mergeLists(list, gone, "apps", func(d Delta) []App { return d.Apps }, App.key)
	out.Machines = mergeLists(list, gone, "machines", func(d Delta) []Machine { return d.Machines }, Machine.key)
	out.Clients = mergeLists(list, gone, "clients", func(d Delta) []ViewClient { return d.Clients }, ViewClient.key)
	out.Records = mergeLists(list, gone, "records", func(d Delta) []Record { return d.Records }, Record.key)
	out.Health = mergeLists(list, gone, "health", func(d Delta) []Health { return d.Health }, Health.key)
	out.Grants = mergeLists(list, gone, "grants", func(d Delta) []Grant { return d.Grants }, Grant.key)
	out.Granted = mergeLists(list, gone, "granted", func(d Delta) []Granted { return d.Granted }, Granted.key)
	out.Removed = slices.Sorted(maps.Keys(gone))
	return out
}

func removesCoordinate(d Delta) bool {
	return slices.ContainsFunc(d.Removed, func(key string) bool { return strings.HasPrefix(key, "coordinates/") })
}

// mergeLists returns what stands at the end of one kind, by key, and takes from gone
// what came back.
func mergeLists[T any](list []Delta, gone map[string]bool, kind string, of func(Delta) []T, key func(T) string) []T {
	set := map[string]T{}
	for _, d := range list {
		if len(set) > 0 {
			for _, removed := range d.Removed {
				if k, ok := strings.CutPrefix(removed, kind+"/"); ok {
					delete(set, k)
				}
			}
		}
		for _, x := range of(d) {
			set[key(x)] = x
		}
	}
	var out []T
	for _, k := range slices.Sorted(maps.Keys(set)) {
		out = append(out, set[k])
		delete(gone, kind+"/"+k)
	}
	return out
}
