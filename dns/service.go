package dns

import (
	"net/netip"
	"strconv"
)

// Service is one SRV record (RFC 2782).
type Service struct {
	Priority uint16 // of an app: 0 for the nearest machines, 1 for the next ones, ...
	Weight   uint16
	Port     uint16
	Target   string     // of an app: <machine>.vm.<app>.internal.
	Addr     netip.Addr // of the target, to send along; invalid: not known
}

// serviceWeight spreads the clients evenly over targets of one priority.
const serviceWeight = 1

// service cuts _<port>._tcp. or _<port>._udp. off the left end of labels. depth is
// how many labels were cut: with one, the protocol alone, the name is one in
// between.
func service(labels []string) (rest []string, port uint16, depth int) {
	isProtocol := func(i int) bool { return i < len(labels) && (labels[i] == "_tcp" || labels[i] == "_udp") }
	switch {
	case isProtocol(0):
		return labels[1:], 0, 1
	case isProtocol(1):
		if port, ok := portOf(labels[0]); ok {
			return labels[2:], port, 2
		}
	}
	return labels, 0, 0
}

// portOf reads "_<port>", 1 to 65535 without leading zeros.
func portOf(label string) (uint16, bool) {
	if len(label) < 2 || len(label) > 6 || label[0] != '_' || label[1] == '0' {
		return 0, false
	}
	for i := 1; i < len(label); i++ {
		if !isDigit(label[i]) {
			return 0, false
		}
	}
	port, err := strconv.ParseUint(label[1:], 10, 16)
	return uint16(port), err == nil
}

// services returns one record for each machine that the AAAA answer would have,
// with priorities by distance: who is as near as the one before has the same.
func (v view) services(s selection, port uint16) []Service {
	var out []Service
	var priority uint16
	var first candidate // of this priority
	for i, c := range v.choose(s) {
		if i == 0 {
			first = c
		} else if !equals(first.distance, c.distance) {
			first = c
			priority++
		}
		out = append(out, Service{Priority: priority, Weight: serviceWeight, Port: port, Target: c.id + ".vm." + c.app + "." + zoneName, Addr: c.addr})
	}
	return out
}
