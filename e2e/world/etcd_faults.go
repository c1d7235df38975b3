package world

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Compact drops the history of the whole cluster before a revision.
func (m *EtcdMember) Compact(ctx context.Context, revision int64) error {
	return m.call(ctx, "/v3/kv/compaction", map[string]any{"revision": strconv.FormatInt(revision, 10), "physical": true}, nil)
}

// Metric is a number that the member tells about itself, by its name with labels as
// it prints them.
func (m *EtcdMember) Metric(ctx context.Context, name string) (float64, error) {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{
		DialContext: m.DialContext, TLSClientConfig: m.etcd.TLS(), DisableKeepAlives: true,
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, m.URL()+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return 0, fmt.Errorf("etcd member %s: %w", m.Name(), err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		if value, found := strings.CutPrefix(lines.Text(), name+" "); found {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("etcd member %s: metric %s: %w", m.Name(), name, errors.Join(errors.New("it tells none"), lines.Err()))
}

// Lead makes the member the leader, in place of the one that leads.
func (m *EtcdMember) Lead(ctx context.Context) error {
	led, _, err := m.etcd.Leader(ctx)
	if err != nil || led == m {
		return err
	}
	s, err := m.Status(ctx)
	if err != nil {
		return err
	}
	return led.call(ctx, "/v3/maintenance/transfer-leadership", map[string]any{"targetID": strconv.FormatUint(s.Header.Member, 10)}, nil)
}

// Grow writes so many megabytes that nobody reads.
func (m *EtcdMember) Grow(ctx context.Context, megabytes int) error {
	value := make([]byte, 1<<20)
	for i := range megabytes {
		if err := m.call(ctx, "/v3/kv/put", map[string]any{"key": fmt.Appendf(nil, "filler/%d", i), "value": value}, nil); err != nil {
			return err
		}
	}
	return nil
}

// Count is how many keys begin with a prefix, by what this member knows.
func (m *EtcdMember) Count(ctx context.Context, prefix string) (int, error) {
	end := []byte(prefix)
	end[len(end)-1]++
	var answer struct {
		Count int `json:"count,string"` // left out if 0
	}
	request := map[string]any{"key": []byte(prefix), "range_end": end, "count_only": true, "serializable": true}
	err := m.call(ctx, "/v3/kv/range", request, &answer)
	return answer.Count, err
}
