package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Choice is a flag's value that is one of a few words.
type Choice struct {
	value string
	words []string
}

// NewChoice returns a Choice whose default is the first word.
func NewChoice(words ...string) *Choice { return &Choice{words[0], words} }

// Set accepts one of the words.
func (c *Choice) Set(s string) error {
	for _, w := range c.words {
		if s == w {
			c.value = s
			return nil
		}
	}
	return fmt.Errorf("want %s", strings.Join(c.words, " or "))
}

func (c *Choice) String() string { return c.value }

// Type is what help shows after the flag's name.
func (c *Choice) Type() string { return strings.Join(c.words, "|") }

// AddOutput gives a command and all below it the flag -o.
func AddOutput(cmd *cobra.Command) {
	cmd.PersistentFlags().VarP(NewChoice("table", "json"), "output", "o", "how to print results")
}

// Table is a result for people.
type Table struct {
	Header []string // in capitals; none: no header line
	Rows   [][]string
}

// Write aligns the columns. An empty cell is printed as "-".
func (t Table) Write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows := t.Rows
	if len(t.Header) > 0 {
		rows = append([][]string{t.Header}, rows...)
	}
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, c := range row {
			if cells[i] = c; c == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// IsJSON reports whether -o json was asked for.
func IsJSON(cmd *cobra.Command) bool {
	f := cmd.Flag("output")
	return f != nil && f.Value.String() == "json"
}

// Print writes a result to stdout: v as JSON with -o json, else the table.
func Print(cmd *cobra.Command, v any, t Table) error {
	if IsJSON(cmd) {
		return PrintJSON(cmd, v)
	}
	return t.Write(cmd.OutOrStdout())
}

// PrintJSON writes v to stdout, indented.
func PrintJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Time is how tables show a moment: to the second, in UTC.
func Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// Milliseconds is how tables show a round trip; 0 is not measured.
func Milliseconds(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// Log holds the two logging flags.
type Log struct {
	format *Choice
	level  *Choice
}

// AddLog gives a command the flags --log-format and --log-level.
func AddLog(flags *pflag.FlagSet) *Log {
	l := &Log{NewChoice("text", "json"), NewChoice("info", "debug", "warn", "error")}
	flags.Var(l.format, "log-format", "how to log on stderr")
	flags.Var(l.level, "log-level", "the least severe messages to log")
	return l
}

// Logger returns the logger that the flags ask for.
func (l *Log) Logger(w io.Writer) *slog.Logger {
	var level slog.Level
	// The flag accepts only words that slog knows.
	_ = level.UnmarshalText([]byte(l.level.String()))
	opts := &slog.HandlerOptions{Level: level}
	if l.format.String() == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
