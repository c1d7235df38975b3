package store

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A member tells of its alarms as text: that of the protocol's own type.
func TestConditionOfAMember(t *testing.T) {
	t.Parallel()
	alarm := func(a pb.AlarmType) string { return (&pb.AlarmMember{MemberID: 42, Alarm: a}).String() }
	c := conditionOf("https://192.0.2.1:2379", &pb.StatusResponse{
		DbSize: 9, DbSizeInUse: 8, DbSizeQuota: 10,
		Errors: []string{"etcdserver: no leader", alarm(pb.AlarmType_NOSPACE), alarm(pb.AlarmType_CORRUPT)},
	})
	var kinds []string
	for _, a := range c.Alarms {
		kind, text, _ := strings.Cut(a, ": ")
		if text == "" {
			t.Errorf("alarm %q says nothing", a)
		}
		kinds = append(kinds, kind)
	}
	if diff := cmp.Diff([]string{AlarmNoSpace, AlarmCorrupt}, kinds); diff != "" {
		t.Errorf("alarms (-want +got):\n%s", diff)
	}
	c.Alarms = nil
	if diff := cmp.Diff(&Condition{Member: "https://192.0.2.1:2379", Size: 9, InUse: 8, Quota: 10}, c); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
