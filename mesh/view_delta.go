package mesh

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Delta leads from one view of a node to a later one. What is listed replaces
// what has the same key; Removed names what went, as "<kind>/<key>". Controllers
// and Roots are whole lists; none means that they stay (a mesh has always some).
type Delta struct {
	Revision Revision `json:"revision"`
	// Format is that of the view, in the delta that a stream begins with; none means
	// that it stays.
	Format int     `json:"format,omitempty"`
	Host   *Host   `json:"host,omitempty"`
	Client *Client `json:"client,omitempty"`

	Coordinate *Coordinate `json:"coordinate,omitempty"` // the host's own

	Controllers []string `json:"controllers,omitempty"`
	Roots       []string `json:"roots,omitempty"`

	Regions  []Region     `json:"regions,omitempty"`
	Hosts    []ViewHost   `json:"hosts,omitempty"`
	Orgs     []Org        `json:"orgs,omitempty"`
	Apps     []App        `json:"apps,omitempty"`
	Machines []Machine    `json:"machines,omitempty"`
	Clients  []ViewClient `json:"clients,omitempty"`
	Records  []Record     `json:"records,omitempty"`
	Health   []Health     `json:"health,omitempty"`
	Grants   []Grant      `json:"grants,omitempty"`
	Granted  []Granted    `json:"granted,omitempty"`
	Removed  []string     `json:"removed,omitempty"`
}

// Empty reports whether nothing changes but the revision.
func (d Delta) Empty() bool {
	d.Revision = Revision{}
	return reflect.DeepEqual(d, Delta{})
}

// DiffViews returns the delta that leads from old to new, views of one node.
func DiffViews(old, new View) Delta {
	d := Delta{Revision: new.Revision}
	if !reflect.DeepEqual(old.Host, new.Host) {
		d.Host = new.Host
	}
	if !reflect.DeepEqual(old.Client, new.Client) {
		d.Client = new.Client
	}
	if new.Format != old.Format {
		d.Format = new.Format
	}
	if !slices.Equal(old.Controllers, new.Controllers) {
		d.Controllers = new.Controllers
	}
	if !slices.Equal(old.Roots, new.Roots) {
		d.Roots = new.Roots
	}
	d.Regions = diffList(&d, "regions", old.Regions, new.Regions, Region.key)
	d.Hosts = diffList(&d, "hosts", old.Hosts, new.Hosts, ViewHost.key)
	d.Orgs = diffList(&d, "orgs", old.Orgs, new.Orgs, Org.key)
	d.Apps = diffList(&d, "apps", old.Apps, new.Apps, App.key)
	d.Machines = diffList(&d, "machines", old.Machines, new.Machines, Machine.key)
	d.Clients = diffList(&d, "clients", old.Clients, new.Clients, ViewClient.key)
	d.Records = diffList(&d, "records", old.Records, new.Records, Record.key)
	d.Health = diffList(&d, "health", old.Health, new.Health, Health.key)
	d.Grants = diffList(&d, "grants", old.Grants, new.Grants, Grant.key)
	d.Granted = diffList(&d, "granted", old.Granted, new.Granted, Granted.key)
	switch {
	case new.Coordinate == nil && old.Coordinate != nil:
		d.Removed = append(d.Removed, "coordinates/"+new.Self.Name)
	case !reflect.DeepEqual(old.Coordinate, new.Coordinate):
		d.Coordinate = new.Coordinate
	}
	return d
}

// Apply returns the view after a delta: for every pair of views of one node,
// old.Apply(DiffViews(old, new)) equals new.
func (v View) Apply(d Delta) View {
	v.Revision = d.Revision
	if d.Host != nil {
		v.Host = d.Host
	}
	if d.Client != nil {
		v.Client = d.Client
	}
	if d.Format != 0 {
		v.Format = d.Format
	}
	if d.Coordinate != nil {
		v.Coordinate = d.Coordinate
	}
	if d.Controllers != nil {
		v.Controllers = d.Controllers
	}
	if d.Roots != nil {
		v.Roots = d.Roots
	}
	gone := map[string]bool{}
	for _, r := range d.Removed {
		gone[r] = true
	}
	v.Regions = applyList("regions", v.Regions, d.Regions, gone, Region.key)
	v.Hosts = applyList("hosts", v.Hosts, d.Hosts, gone, ViewHost.key)
	v.Orgs = applyList("orgs", v.Orgs, d.Orgs, gone, Org.key)
	v.Apps = applyList("apps", v.Apps, d.Apps, gone, App.key)
	v.Machines = applyList("machines", v.Machines, d.Machines, gone, Machine.key)
	v.Clients = applyList("clients", v.Clients, d.Clients, gone, ViewClient.key)
	v.Records = applyList("records", v.Records, d.Records, gone, Record.key)
	v.Health = applyList("health", v.Health, d.Health, gone, Health.key)
	v.Grants = applyList("grants", v.Grants, d.Grants, gone, Grant.key)
	v.Granted = applyList("granted", v.Granted, d.Granted, gone, Granted.key)
	if gone["coordinates/"+v.Self.Name] {
		v.Coordinate = nil
	}
	return v
}

func (r Region) key() string     { return r.Name }
func (h ViewHost) key() string   { return h.Name }
func (o Org) key() string        { return o.Name }
func (a App) key() string        { return a.Org + "/" + a.Name }
func (m Machine) key() string    { return m.Org + "/" + m.ID }
func (c ViewClient) key() string { return c.Org + "/" + c.Name }
func (r Record) key() string     { return r.Org + "/" + r.Name + "/" + r.Type }
func (h Health) key() string     { return h.Org + "/" + h.Machine }
func (g Grant) key() string      { return g.ID }
func (g Granted) key() string    { return g.Endpoint.String() }

func diffList[T any](d *Delta, kind string, old, new []T, key func(T) string) (set []T) {
	was := make(map[string]T, len(old))
	for _, x := range old {
		was[key(x)] = x
	}
	for _, x := range new {
		k := key(x)
		if y, ok := was[k]; !ok || !reflect.DeepEqual(x, y) {
			set = append(set, x)
		}
		delete(was, k)
	}
	for _, k := range slices.Sorted(maps.Keys(was)) {
		d.Removed = append(d.Removed, kind+"/"+k)
	}
	return set
}

func applyList[T any](kind string, list, set []T, gone map[string]bool, key func(T) string) []T {
	if len(set) == 0 && len(gone) == 0 {
		return list
	}
	replaced := make(map[string]bool, len(set))
	for _, x := range set {
		replaced[key(x)] = true
	}
	var out []T
	for _, x := range list {
		if k := key(x); !replaced[k] && !gone[kind+"/"+k] {
			out = append(out, x)
		}
	}
	out = append(out, set...)
	slices.SortFunc(out, func(a, b T) int { return strings.Compare(key(a), key(b)) })
	return out
}
