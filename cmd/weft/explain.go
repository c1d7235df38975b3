package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh/agent/local"
)

// explain prints why a name is answered as it is.
func explain(cmd *cobra.Command, name, kind string) error {
	org, _ := cmd.Flags().GetString("org")
	as, _ := cmd.Flags().GetString("as")
	x, err := node(cmd).Explain(cmd.Context(), org, as, name, kind)
	if err != nil {
		return notRunning(err)
	}
	if cli.IsJSON(cmd) {
		err = cli.PrintJSON(cmd, x)
	} else {
		err = printExplain(cmd, x)
	}
	if err == nil && x.Rcode == "NXDOMAIN" {
		err = noSuchName(name)
	}
	return err
}

func printExplain(cmd *cobra.Command, x local.Explain) error {
	w := cmd.OutOrStdout()
	if err := explainHead(x).Write(w); err != nil || len(x.Machines) == 0 {
		return err
	}
	fmt.Fprintln(w)
	return consideredTable(x.Machines).Write(w)
}

// explainHead says what was asked, of whom, and how old what it knows is.
func explainHead(x local.Explain) cli.Table {
	asker := fmt.Sprintf("%s (a member of %s that is no machine)", x.Source, x.Org)
	if x.As != "" {
		asker = fmt.Sprintf("%s (machine %s of %s)", x.Source, x.As, x.Org)
	}
	node := x.Node
	if x.Region != "" {
		node += ", region " + x.Region
	}
	state := "connected"
	if !x.Connected {
		state = "NOT connected"
	}
	t := cli.Table{Rows: [][]string{
		{"question", x.Name + " " + x.Type},
		{"asked by", asker},
		{"answered by", node},
		{"view", fmt.Sprintf("revision %s, %s, known to be current %s ago", x.Revision, state, age(&x.ViewAge))},
	}}
	switch {
	case len(x.Machines) > 0:
		in := 0
		for _, m := range x.Machines {
			in += min(m.Position, 1)
		}
		t.Rows = append(t.Rows, []string{"answer", fmt.Sprintf("%s, %d of %d machines", x.Rcode, in, len(x.Machines))})
	case x.Rcode != "":
		t.Rows = append(t.Rows, []string{"answer", strings.Join(append([]string{x.Rcode}, x.Answer...), " ")})
	}
	if x.Note != "" {
		t.Rows = append(t.Rows, []string{"why", x.Note})
	}
	return t
}

func consideredTable(machines []local.Considered) cli.Table {
	t := cli.Table{Header: []string{"#", "MACHINE", "STATE", "HOST", "REGION", "DISTANCE", "RESTS ON", "HOST STATE", "LAST PROBE", "WHY"}}
	for _, m := range machines {
		position := ""
		if m.Position > 0 {
			position = fmt.Sprint(m.Position)
		}
		distance := cli.Milliseconds(m.Distance)
		if m.Basis == "here" {
			distance = "0.0 ms"
		}
		t.Rows = append(t.Rows, []string{position, m.Machine, machineState(m), m.Host, m.Region, distance, basis(m), consideredHost(m), lastProbe(m), m.Reason})
	}
	return t
}

// basis is what a distance rests on, with what tells how good that is.
func basis(m local.Considered) string {
	if m.Basis == "coordinates" {
		return fmt.Sprintf("coordinates, error %.2f", m.CoordinateError)
	}
	return m.Basis
}

// machineState is the machine's state and health, and since when.
func machineState(m local.Considered) string {
	out := cmp.Or(m.State, "unknown")
	if m.Cordoned {
		out += ",cordoned" // as `weft machine list` has it
	}
	if m.Health != "" {
		out += ", " + m.Health
		if m.HealthAge != nil {
			out += " for " + age(m.HealthAge)
		}
		if m.Note != "" {
			out += " (" + m.Note + ")"
		}
	}
	return out
}

// consideredHost is the state of a machine's host, and since when.
func consideredHost(m local.Considered) string {
	out := m.HostState
	if m.SuspectAge != nil {
		out += " for " + age(m.SuspectAge)
	}
	if m.AbsentAge != nil {
		out += ", lost by the controllers " + age(m.AbsentAge) + " ago"
	}
	if m.HostCordoned {
		out += ", cordoned"
	}
	return out
}

// lastProbe is when the host last answered a probe.
func lastProbe(m local.Considered) string {
	switch {
	case m.Basis == "here":
		return ""
	case m.AnsweredAge != nil:
		return "answered " + age(m.AnsweredAge) + " ago"
	case m.AskedAge != nil:
		return "asked " + age(m.AskedAge) + " ago, never answered"
	}
	return "not asked yet"
}

// age is how tables show how old something is: with as many digits as matter.
func age(d *time.Duration) string {
	switch {
	case *d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case *d < time.Hour:
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}

// top prints the names that are asked most.
func top(cmd *cobra.Command) error {
	names, err := node(cmd).Top(cmd.Context())
	if err != nil {
		return notRunning(err)
	}
	t := cli.Table{Header: []string{"QUERIES", "NAME"}}
	for _, n := range names.Names {
		t.Rows = append(t.Rows, []string{fmt.Sprint(n.Count), n.Name})
	}
	return cli.Print(cmd, names, t)
}
