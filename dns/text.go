package dns

import (
	"slices"
	"strings"
)

// maxText bounds the text of one TXT record so that the record, cut into strings of
// 255 bytes, fits a message of 64 KiB together with the longest question.
const maxText = 64900

// joined is entries put together.
type joined struct{ strings.Builder }

// add adds one. It is false if it does not fit: then nothing may follow.
func (t *joined) add(entry, separator string) bool {
	if t.Len() == 0 {
		separator = ""
	}
	if t.Len()+len(separator)+len(entry) > maxText {
		return false
	}
	t.WriteString(separator)
	t.WriteString(entry)
	return true
}

// join puts entries together, cut at the last one that fits.
func join(entries []string, separator string) string {
	var t joined
	for _, e := range entries {
		if !t.add(e, separator) {
			break
		}
	}
	return t.String()
}

// textStrings cuts text into the strings of a TXT record.
func textStrings(text string) []string {
	var parts []string
	for len(text) > 255 {
		parts = append(parts, text[:255])
		text = text[255:]
	}
	return append(parts, text)
}

// appTexts finds vms and regions, with or without all., under an app. ok is false
// if labels are something else.
func (v view) appTexts(a *app, labels []string) (t thing, ok bool) {
	if len(labels) == 0 {
		return thing{}, false
	}
	word := labels[len(labels)-1]
	if word != "vms" && word != "regions" {
		return thing{}, false
	}
	all := len(labels) == 2 && labels[0] == "all"
	if len(labels) > 1 && !all {
		return thing{}, true
	}
	if word == "vms" {
		return thing{kind: text, text: func() string { return v.vmText(a, all) }}, true
	}
	return thing{kind: text, text: func() string { return v.regionText(a, all) }}, true
}

// shown returns the machines of an app that its texts name, sorted by id: those
// that could be answered, or all there are.
func (v view) shown(a *app, all bool) []*machine {
	if all {
		return a.roster(v.zone).list
	}
	cs := leaveOut(candidates(v.facts, a.roster(v.zone).list), true)
	ms := make([]*machine, len(cs))
	for i, c := range cs {
		ms[i] = c.machine
	}
	return ms
}

func (v view) vmText(a *app, all bool) string {
	var entries []string
	for _, m := range v.shown(a, all) {
		entries = append(entries, m.id+" "+m.host.region)
	}
	return join(entries, ",")
}

func (v view) regionText(a *app, all bool) string {
	var entries []string
	for _, m := range v.shown(a, all) {
		entries = append(entries, m.host.region)
	}
	slices.Sort(entries)
	return join(slices.Compact(entries), ",")
}

// instanceText goes through the machines by id until no more fit.
func (v view) instanceText(all bool) string {
	var t joined
	alive := map[string]bool{} // by app: it has machines that are not dead
	for id, m := range v.machines.all() {
		if m.unlisted || !v.holds(m.addr, ofMachine, id) {
			continue
		}
		c := candidateOf(v.facts, v.zone.machine(m))
		if !all && (!c.up || c.host.cordoned) {
			continue
		}
		if !all && c.dead {
			some, known := alive[m.app]
			if !known {
				a, _ := v.apps.get(m.app)
				some = slices.ContainsFunc(candidates(v.facts, a.roster(v.zone).list), func(c candidate) bool { return !c.dead })
				alive[m.app] = some
			}
			if some {
				continue
			}
		}
		if !t.add("instance="+m.id+",app="+m.app+",ip="+m.addr.String()+",region="+c.host.region, ";") {
			break
		}
	}
	return t.String()
}

func (v view) appText() string {
	var t joined
	for name := range v.apps.all() {
		if !t.add(name, ",") {
			break
		}
	}
	return t.String()
}

func (v view) clientText() string {
	var t joined
	for name, addr := range v.clients.all() {
		if v.holds(addr, ofClient, name) && !t.add(name, ",") {
			break
		}
	}
	return t.String()
}
