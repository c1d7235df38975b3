package store

import (
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Condition is how an etcd member was when it was last looked at.
type Condition struct {
	Member string // its endpoint; "" for the one inside
	Size   int64  // of its database file, in bytes
	InUse  int64  // of that, what is not free inside
	Quota  int64  // size at which it takes no more writes; 0: not known
	Alarms []string
}

// Alarms as a Condition has them: a name, a colon and plain words.
const (
	AlarmNoSpace = "NOSPACE"
	AlarmCorrupt = "CORRUPT"
)

func conditionOf(endpoint string, s *pb.StatusResponse) *Condition {
	c := &Condition{Member: endpoint, Size: s.DbSize, InUse: s.DbSizeInUse, Quota: s.DbSizeQuota}
	for _, e := range s.Errors {
		switch {
		case strings.Contains(e, "alarm:"+AlarmNoSpace):
			c.Alarms = append(c.Alarms, AlarmNoSpace+": a member's database is full, changes are refused; raise its --quota-backend-bytes, or etcdctl compact and defrag, and then: etcdctl alarm disarm")
		case strings.Contains(e, "alarm:"+AlarmCorrupt):
			c.Alarms = append(c.Alarms, AlarmCorrupt+": a member's data does not match the others'; replace that member, or restore a backup")
		}
	}
	return c
}

// Conditions says how the members were at the last look; members that have never
// answered are left out.
func (cl *Cluster) Conditions() []Condition {
	var out []Condition
	for _, m := range cl.members {
		if c := m.condition.Load(); c != nil {
			out = append(out, *c)
		}
	}
	return out
}
