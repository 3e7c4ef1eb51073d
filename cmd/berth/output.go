package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Values of --format.
const (
	formatTable = "table"
	formatJSON  = "json"
)

// json tells whether output is for machines.
func (a *app) json() bool { return a.format == formatJSON }

// writeJSON writes a value indented, with fields in the order of their types.
func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// columnGap is the space between the columns of a table, in characters.
const columnGap = 3

// columns is how wide a terminal is, in characters; 0: it is none.
func columns(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// width is that of the longest cell of a column, in characters.
func width(rows [][]string, column int) int {
	longest := 0
	for _, row := range rows {
		longest = max(longest, utf8.RuneCountInString(row[column]))
	}
	return longest
}

// table writes rows in columns, with a head of capitals.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, head ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 8, columnGap, ' ', 0)}
	t.row(head...)
	return t
}

// row adds a row. What would break the table apart is taken out of cells.
func (t *table) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, cell)
	}
	fmt.Fprintln(t.w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

func (t *table) flush() error { return t.w.Flush() }

// notes is where berth says something while a process may run in the
// foreground. If the terminal is raw for it, what is said gets lines of its own,
// and these end as they have to there.
type notes struct{ app *app }

func (n notes) Write(text []byte) (int, error) {
	out := text
	if n.app.raw.Load() {
		out = bytes.ReplaceAll(append([]byte{'\n'}, text...), []byte{'\n'}, []byte("\r\n"))
	}
	if _, err := n.app.err.Write(out); err != nil {
		return 0, err
	}
	return len(text), nil
}

// shorten cuts text to at most n runes, with an ellipsis where it is cut.
func shorten(text string, n int) string {
	runes := []rune(text)
	if len(runes) <= n {
		return text
	}
	return string(runes[:n-1]) + "…"
}

// humanSize writes a number of bytes like "1.9 MiB".
func humanSize(bytes int64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/1024, 0
	for value >= 999.95 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// humanAge writes the time since then like "3 minutes ago".
func (a *app) humanAge(then time.Time) string {
	if then.IsZero() {
		return "-"
	}
	age := max(a.now().Sub(then), 0)
	for _, step := range []struct {
		unit time.Duration
		name string
	}{{365 * 24 * time.Hour, "year"}, {30 * 24 * time.Hour, "month"}, {7 * 24 * time.Hour, "week"},
		{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := int(age / step.unit); n > 0 {
			return fmt.Sprintf("%d %s%s ago", n, step.name, plural(n))
		}
	}
	return "just now"
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// shortDigest cuts a digest to what tells it apart for people.
func shortDigest(digest string) string {
	_, hex, found := strings.Cut(digest, ":")
	if !found {
		hex = digest
	}
	return hex[:min(len(hex), 12)]
}
