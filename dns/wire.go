package dns

import (
	"encoding/binary"
)

// The short way through the server: plain questions about the mesh's names are
// read and answered as bytes, without a dns.Msg. What is not plain (options,
// several questions, a message that is not whole, anything forwarded) is left to
// parseRequest and answerMessage, which know everything; for what both accept, the
// answers are equal.

// plain is a plain question, as parts of its packet.
type plain struct {
	packet []byte // header and question, nothing else
	name   []byte // on the wire, with the final zero; of the packet
	qtype  uint16
	edns   bool
	do     bool // DNSSEC OK, given back
	size   int  // of the largest answer over UDP
}

const (
	optSize     = 11 // of an OPT record without options
	maxNameWire = 255
	classIN     = 1
	typeOPT     = 41
)

// parsePlain reads a query; ok is false if it is not plain.
func parsePlain(packet []byte) (q plain, ok bool) {
	be := binary.BigEndian
	if len(packet) < headerSize+5 || packet[2]&0xfe != 0 || packet[3]&0xcf != 0 { // QR, opcode, AA, TC; RA, Z, rcode. RD, AD, CD may be set
		return q, false
	}
	if be.Uint16(packet[4:]) != 1 || be.Uint32(packet[6:]) != 0 || be.Uint16(packet[10:]) > 1 {
		return q, false
	}
	name, ok := nameIn(packet)
	if !ok {
		return q, false
	}
	end := headerSize + len(name)
	q.name, q.qtype, q.size = name, be.Uint16(packet[end:]), plainSize
	if be.Uint16(packet[end+2:]) != classIN {
		return q, false
	}
	q.packet = packet[:end+4]
	rest := packet[end+4:]
	if be.Uint16(packet[10:]) == 0 {
		return q, len(rest) == 0
	}
	// The root's name, type, size, extended rcode, version, flags, no data.
	if len(rest) != optSize || rest[0] != 0 || be.Uint16(rest[1:]) != typeOPT || rest[6] != 0 || be.Uint16(rest[9:]) != 0 {
		return q, false
	}
	q.edns, q.do = true, rest[7]&0x80 != 0
	q.size = max(plainSize, min(int(be.Uint16(rest[3:])), udpSize))
	return q, true
}

// nameIn returns the name of a message's first question, as it is on the wire; a type
// and a class follow it. ok is false if there is no such name that is whole. The
// message has room for a header and the least question.
func nameIn(packet []byte) (name []byte, ok bool) {
	end := headerSize
	for packet[end] != 0 {
		if packet[end] > 63 { // a pointer, or none of a name
			return nil, false
		}
		if end += 1 + int(packet[end]); end+5 > len(packet) || end-headerSize >= maxNameWire {
			return nil, false
		}
	}
	return packet[headerSize : end+1], true
}

// askedName is the name that a query with one question asks about, whatever else is in
// it.
func askedName(packet []byte) (name []byte, ok bool) {
	const query, opcode = 0x80, 0x78
	if len(packet) < headerSize+5 || packet[2]&(query|opcode) != 0 || binary.BigEndian.Uint16(packet[4:]) != 1 {
		return nil, false
	}
	return nameIn(packet)
}

// labels are the name's, in lower case.
func (q plain) labels() []string { return wireLabels(q.name) }

// wireLabels are those of a name on the wire that is whole, in lower case.
func wireLabels(name []byte) []string {
	var out []string
	for i := 0; name[i] != 0; i += 1 + int(name[i]) {
		out = append(out, lower(string(name[i+1:i+1+int(name[i])])))
	}
	return out
}

// packed is an answer but for what each asker's question decides: id, flags, the
// name's letters, EDNS0. Names in it point into the question.
type packed struct {
	rcode             Rcode
	authoritative     bool
	answers, ns, more uint16
	records           []byte
}

// reply writes the answer to q into buf, whose length is kept. It returns nil if the
// answer does not fit q's size or buf.
func (p *packed) reply(buf []byte, q plain, recursion bool) []byte {
	n := len(q.packet) + len(p.records)
	if q.edns {
		n += optSize
	}
	if n > q.size || n > cap(buf) {
		return nil
	}
	out := append(buf[:0], q.packet...)
	out[2] = 0x80 | q.packet[2]&1 // QR, RD
	if p.authoritative {
		out[2] |= 0x04
	}
	out[3] = byte(p.rcode)&15 | q.packet[3]&0x10 // CD
	if recursion {
		out[3] |= 0x80
	}
	more := p.more
	out = append(out, p.records...)
	if q.edns {
		more++
		flags := byte(0)
		if q.do {
			flags = 0x80
		}
		out = append(out, 0, 0, typeOPT, udpSize>>8, udpSize&255, 0, 0, flags, 0, 0, 0)
	}
	be := binary.BigEndian
	be.PutUint16(out[6:], p.answers)
	be.PutUint16(out[8:], p.ns)
	be.PutUint16(out[10:], more)
	return out
}

// questionName is where a question's name stands, as a compression pointer.
const questionName = 0xc000 | headerSize

// pack makes the packed form of an answer to the question with the given name. ok is
// false for what is left to answerMessage.
func pack(a Answer, name []byte) (p packed, ok bool) {
	w := recordWriter{name: name}
	p.rcode, p.authoritative = a.Rcode, a.Zone != ""
	switch {
	case a.Forward || a.Minimal || a.SOA || a.Rcode > 15:
		return p, false
	case a.Zone == "":
	case len(a.Addrs) > 0:
		for _, addr := range a.Addrs {
			b := addr.As16()
			w.record(TypeAAAA, a.TTL, b[:])
		}
		p.answers = uint16(len(a.Addrs))
	case len(a.Ports) > 0:
		p.answers, p.more = uint16(len(a.Ports)), w.services(a.Ports, a.TTL)
	case len(a.Texts) > 0:
		for _, text := range a.Texts {
			w.text(text, a.TTL)
		}
		p.answers = uint16(len(a.Texts))
	case a.Text != "":
		w.text(a.Text, a.TTL)
		p.answers = 1
	case a.Target != "":
		target, ok := wireName(a.Target)
		if !ok {
			return p, false
		}
		w.record(TypePTR, a.TTL, target)
		p.answers = 1
	default:
		if !w.soa(a.Zone) {
			return p, false
		}
		p.ns = 1
	}
	p.records = w.out
	return p, !w.bad
}

// recordWriter appends records to the answer to a question with the given name.
type recordWriter struct {
	name []byte
	out  []byte
	bad  bool // a name was none
}

// record appends one whose owner is the question's name.
func (w *recordWriter) record(rtype uint16, ttl uint32, data []byte) {
	w.recordAt(questionName, rtype, ttl, data)
}

func (w *recordWriter) recordAt(owner, rtype uint16, ttl uint32, data []byte) {
	be := binary.BigEndian
	w.out = be.AppendUint16(w.out, owner)
	w.out = be.AppendUint16(w.out, rtype)
	w.out = be.AppendUint16(w.out, classIN)
	w.out = be.AppendUint32(w.out, ttl)
	w.out = be.AppendUint16(w.out, uint16(len(data)))
	w.out = append(w.out, data...)
}

// services appends SRV records, and those addresses of their targets that are known: they point at
// the names in the SRV records, which must not be compressed themselves (RFC 2782).
func (w *recordWriter) services(ports []Service, ttl uint32) (addresses uint16) {
	start := headerSize + len(w.name) + 4
	at := make([]int, len(ports))
	for i, s := range ports {
		target, ok := wireName(s.Target)
		w.bad = w.bad || !ok
		be := binary.BigEndian
		data := be.AppendUint16(nil, s.Priority)
		data = be.AppendUint16(data, s.Weight)
		data = be.AppendUint16(data, s.Port)
		w.record(TypeSRV, ttl, append(data, target...))
		at[i] = start + len(w.out) - len(target)
	}
	for i, s := range ports {
		if !s.Addr.IsValid() {
			continue
		}
		addresses++
		w.bad = w.bad || at[i] > 0x3fff // out of a pointer's reach; too long for UDP anyway
		b := s.Addr.As16()
		w.recordAt(0xc000|uint16(at[i]), TypeAAAA, ttl, b[:])
	}
	return addresses
}

func (w *recordWriter) text(text string, ttl uint32) {
	var data []byte
	for _, s := range textStrings(text) {
		data = append(append(data, byte(len(s))), s...)
	}
	if w.bad = w.bad || len(data) > 0xffff; !w.bad {
		w.record(TypeTXT, ttl, data)
	}
}

// soa appends the SOA of a zone that the question's name is in.
func (w *recordWriter) soa(zone string) bool {
	owner, ok1 := wireName(zone)
	ns, ok2 := wireName("_api." + zoneName)
	mail, ok3 := wireName("hostmaster." + zoneName)
	at := len(w.name) - len(owner)
	if !ok1 || !ok2 || !ok3 || at < 0 {
		return false
	}
	data := append(append([]byte{}, ns...), mail...)
	for _, v := range []uint32{soaSerial, soaRefresh, soaRetry, soaExpire, negativeTTL} {
		data = binary.BigEndian.AppendUint32(data, v)
	}
	w.recordAt(questionName+uint16(at), TypeSOA, negativeTTL, data)
	return true
}

// wireName writes a name in presentation form for the wire.
func wireName(name string) ([]byte, bool) {
	labels, ok := splitName(name)
	if !ok {
		return nil, false
	}
	out := make([]byte, 0, len(name)+1)
	for _, l := range labels {
		out = append(append(out, byte(len(l))), l...)
	}
	return append(out, 0), true
}
