package dns

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// maxText bounds the text of one TXT record so that the record, cut into strings of
// 255 bytes, fits a message of 64 KiB together with the longest question.
const maxText = 64900

// join puts entries together, cut at the last one that fits.
func join(entries []string, separator string) string {
	var b strings.Builder
	for _, e := range entries {
		more := len(e)
		if b.Len() > 0 {
			more += len(separator)
		}
		if b.Len()+more > maxText {
			break
		}
		if b.Len() > 0 {
			b.WriteString(separator)
		}
		b.WriteString(e)
	}
	return b.String()
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
		return a.machines
	}
	cs := leaveOut(candidates(v.facts, a.machines), true)
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

func (v view) instanceText(all bool) string {
	var ms []*machine
	for _, name := range v.appNames {
		ms = append(ms, v.shown(v.apps[name], all)...)
	}
	slices.SortFunc(ms, func(a, b *machine) int { return cmp.Compare(a.id, b.id) })
	entries := make([]string, len(ms))
	for i, m := range ms {
		entries[i] = "instance=" + m.id + ",app=" + m.app + ",ip=" + m.addr.String() + ",region=" + m.host.region
	}
	return join(entries, ";")
}

func (v view) appText() string { return join(v.appNames, ",") }

func (v view) clientText() string { return join(slices.Sorted(maps.Keys(v.clients)), ",") }
