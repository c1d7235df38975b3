package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weftmesh/weft/e2e/lab"
)

// each makes one that is asked a question at a time out of one that takes them all.
func each(ask func(context.Context, *box, string, question) ([]string, error)) func(context.Context, *box, string, []question) ([][]string, error) {
	return func(ctx context.Context, b *box, via string, qs []question) (all [][]string, err error) {
		for _, q := range qs {
			got, err := ask(ctx, b, via, q)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", q.kind, q.name, err)
			}
			all = append(all, got)
		}
		return all, nil
	}
}

// values are the parts of text that is separated by sep, without final dots; "none"
// if there are none.
func values(text, sep string) []string {
	out := []string{}
	for _, v := range strings.Split(strings.TrimSpace(text), sep) {
		if v = strings.TrimSuffix(strings.TrimSpace(v), "."); v != "" {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		return []string{"none"}
	}
	return out
}

// viaDig reads "NAME TTL CLASS TYPE DATA" and the status.
func viaDig(ctx context.Context, b *box, via string, q question) ([]string, error) {
	args := []string{"dig", "+noall", "+answer", "+comments", "+time=3", "+tries=1"}
	if via == "tcp" {
		args = append(args, "+tcp")
	}
	return viaPrinter(ctx, b, args, q)
}

func viaKdig(ctx context.Context, b *box, via string, q question) ([]string, error) {
	args := []string{"kdig", "+noall", "+answer", "+header", "+timeout=3", "+retry=0"}
	if via == "tcp" {
		args = append(args, "+tcp")
	}
	return viaPrinter(ctx, b, args, q)
}

func viaPrinter(ctx context.Context, b *box, args []string, q question) ([]string, error) {
	if q.kind == "ptr" {
		args = append(args, "-x", q.name)
	} else {
		args = append(args, q.name, q.kind)
	}
	out, err := b.Run(ctx, args[0], args[1:]...)
	if err != nil {
		return nil, err
	}
	var got []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 5 || strings.HasPrefix(line, ";") || !strings.EqualFold(f[3], q.kind) {
			continue
		}
		data := strings.Join(f[4:], " ")
		if q.kind == "txt" { // "one string" "and the next"
			data = strings.Trim(strings.ReplaceAll(data, `" "`, ""), `"`)
		}
		got = append(got, strings.TrimSuffix(data, "."))
	}
	switch {
	case strings.Contains(out, "status: NXDOMAIN"):
		return []string{"NXDOMAIN"}, nil
	case !strings.Contains(out, "status: NOERROR"):
		return nil, fmt.Errorf("%s printed\n%s", args[0], out)
	case len(got) == 0:
		return []string{"NODATA"}, nil
	}
	return got, nil
}

// viaGetentHosts asks the C library, by way of the name service switch.
func viaGetentHosts(ctx context.Context, b *box, _ string, q question) ([]string, error) {
	database := map[string]string{"aaaa": "ahostsv6", "a": "ahostsv4", "ptr": "hosts"}[q.kind]
	out, err := b.Run(ctx, "getent", database, q.name)
	const notFound = 2
	if exit := new(lab.ExitError); errors.As(err, &exit) && exit.Code == notFound {
		return []string{"none"}, nil
	}
	var got []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if q.kind == "ptr" && len(f) > 1 {
			got = append(got, f[1])
		} else if len(f) > 1 && f[1] == "STREAM" {
			got = append(got, f[0])
		}
	}
	return got, err
}

func viaPython(ctx context.Context, b *box, _ string, qs []question) ([][]string, error) {
	args := []string{filepath.Join(b.clients, "lookup.py")}
	for _, q := range qs {
		args = append(args, q.kind, q.name)
	}
	out, err := b.Run(ctx, "python3", args...)
	return lines(out), err
}

// lines are the values of each line, with tabs between.
func lines(out string) (all [][]string) {
	for line := range strings.Lines(out) {
		all = append(all, values(line, "\t"))
	}
	return all
}

func viaMusl(ctx context.Context, b *box, _ string, q question) ([]string, error) {
	how := "-n"
	if q.kind == "ptr" {
		how = "-x"
	}
	out, err := b.Run(ctx, b.static, how, q.name)
	if err != nil {
		return nil, err
	}
	f := strings.Split(out, "\t")
	if len(f) != 3 {
		return nil, fmt.Errorf("it printed %q", out)
	}
	return values(f[1], ","), nil
}

// viaGo asks with one of Go's two resolvers, its own or the C library's. The runtime
// says which one it is.
func viaGo(which string) func(context.Context, *box, string, question) ([]string, error) {
	return func(ctx context.Context, b *box, _ string, q question) ([]string, error) {
		r, err := b.Exec(ctx, lab.Command{Path: filepath.Join(b.bin, "lookup"), Args: []string{q.kind, q.name}, Env: []string{"GODEBUG=netdns=" + which + "+1"}})
		if err != nil {
			return nil, err
		}
		want := map[string]string{"go": "the Go resolver", "cgo": "the cgo resolver"}[which]
		// Of SRV and TXT, which always are its own resolver's, it says nothing.
		if q.kind != "srv" && q.kind != "txt" && !strings.Contains(r.Stderr, want) {
			return nil, fmt.Errorf("it does not say %q: %s", want, r.Stderr)
		}
		if r.Code != 0 {
			return nil, errors.New(r.Stderr)
		}
		if strings.TrimSpace(r.Stdout) == "not found" {
			return []string{"none"}, nil
		}
		return values(r.Stdout, "\n"), nil
	}
}

func viaNode(ctx context.Context, b *box, _ string, q question) ([]string, error) {
	out, err := b.Run(ctx, "node", filepath.Join(b.clients, "lookup.js"), q.kind, q.name)
	got := values(out, "\n")
	for code, word := range map[string]string{"ENOTFOUND": "NXDOMAIN", "ENODATA": "NODATA"} {
		if slices.Equal(got, []string{code}) {
			got = []string{word}
		}
	}
	return got, err
}

func viaNodeLookup(ctx context.Context, b *box, via string, q question) ([]string, error) {
	q.kind = "lookup"
	got, err := viaNode(ctx, b, via, q)
	if len(got) == 1 && (got[0] == "NXDOMAIN" || got[0] == "NODATA") {
		got[0] = "none"
	}
	return got, err
}

func viaErlang(ctx context.Context, b *box, via string, qs []question) ([][]string, error) {
	args := []string{filepath.Join(b.clients, "lookup.escript")}
	for _, q := range qs {
		args = append(args, via, q.kind, q.name)
	}
	out, err := b.Run(ctx, "escript", args...)
	return lines(out), err
}

// viaResolved asks systemd-resolved over D-Bus.
func viaResolved(ctx context.Context, b *box, _ string, q question) ([]string, error) {
	args := []string{"query", "--legend=no", "--cache=no"}
	if q.kind != "ptr" {
		args = append(args, "--type="+strings.ToUpper(q.kind))
	}
	out, err := b.resolved.ctl(ctx, append(args, q.name)...)
	if exit := new(lab.ExitError); errors.As(err, &exit) {
		for text, word := range map[string]string{"not found": "NXDOMAIN", "does not have any RR": "NODATA"} {
			if strings.Contains(exit.Stderr, text) {
				return []string{word}, nil
			}
		}
	}
	var got []string
	for line := range strings.Lines(out) {
		if q.kind == "ptr" { // ADDRESS: NAME
			_, name, _ := strings.Cut(line, ": ")
			name, _, _ = strings.Cut(name, " -- ")
			got = append(got, strings.TrimSpace(name))
			continue
		}
		// NAME IN TYPE DATA -- link: eth0
		line, _, _ = strings.Cut(line, " -- link")
		f := strings.Fields(line)
		if len(f) > 3 && strings.EqualFold(f[2], q.kind) {
			data := strings.Join(f[3:], " ")
			if q.kind == "txt" {
				data = strings.Trim(strings.ReplaceAll(data, `" "`, ""), `"`)
			}
			got = append(got, data)
		}
	}
	return got, err
}
