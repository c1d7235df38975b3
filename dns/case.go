package dns

import (
	"crypto/rand"

	"github.com/miekg/dns"
)

// mixCase returns a name with the case of its letters drawn at random: servers give
// a question back as it was asked, so whoever wants to forge an answer must guess
// that, too (draft-vixie-dnsext-dns0x20). Escaped bytes stay as they are.
func mixCase(name string) string {
	b := []byte(name)
	bits := make([]byte, (len(b)+7)/8)
	rand.Read(bits) // it never fails
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' {
			i++ // what follows is a digit, or stands for itself
			continue
		}
		if 'a' <= b[i] && b[i] <= 'z' && bits[i/8]>>(i%8)&1 == 1 {
			b[i] -= 'a' - 'A'
		}
	}
	return string(b)
}

// sameCase reports whether an answer gives the question's name back exactly. Errors
// without a question have nothing to give back.
func sameCase(m *dns.Msg, name string) bool {
	return len(m.Question) == 0 || m.Question[0].Name == name
}

// restoreCase makes the names that were copied from the question lower case again.
func restoreCase(m *dns.Msg, asked string) {
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Name == asked {
				h.Name = lower(asked)
			}
		}
	}
	for i := range m.Question {
		m.Question[i].Name = lower(m.Question[i].Name)
	}
}
