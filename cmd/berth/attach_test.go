package main

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/berthd/berth/client"
)

// TestLeaveKeys finds ctrl-p ctrl-q however the keys arrive, and takes nothing else
// away.
func TestLeaveKeys(t *testing.T) {
	for _, c := range []struct {
		typed []string
		want  string
		leave bool
	}{
		{[]string{"plain\r"}, "plain\r", false},
		{[]string{"\x10\x11"}, "", true},
		{[]string{"ls\r\x10", "\x11after"}, "ls\r", true},
		{[]string{"\x10", "a"}, "\x10a", false},
		{[]string{"\x10\x10", "x\x11"}, "\x10\x10x\x11", false},
		{[]string{"\x10\x10\x11"}, "\x10", true},
		{[]string{"\x11", "\x10"}, "\x11", false}, // the last waits for what follows
	} {
		keys := &leaveKeys{}
		var got []byte
		left := false
		for _, typed := range c.typed {
			out, leave := keys.filter([]byte(typed))
			got = append(got, out...)
			if left = leave; left {
				break
			}
		}
		if string(got) != c.want || left != c.leave {
			t.Errorf("%q: %q, left %v, want %q, %v", c.typed, got, left, c.want, c.leave)
		}
	}
}

// TestParseWhen reads times as people write them.
func TestParseWhen(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"":                          {},
		"10m":                       now.Add(-10 * time.Minute),
		"1h30m":                     now.Add(-90 * time.Minute),
		"2026-01-02T03:04:05Z":      time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02T03:04:05.5Z":    time.Date(2026, 1, 2, 3, 4, 5, 5e8, time.UTC),
		"2026-01-02T03:04:05+01:00": time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC),
		"2026-01-02":                time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
		"1700000000":                time.Unix(1700000000, 0),
		"1700000000.5":              time.Unix(1700000000, 5e8),
	} {
		if got, err := parseWhen("since", text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, bad := range []string{"yesterday", "-5m", "-3", "2026-13-01"} {
		if got, err := parseWhen("since", bad, now); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// TestLogWriter keeps streams and lines apart.
func TestLogWriter(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	entries := []client.LogEntry{
		{Time: at, Data: []byte("be")}, {Time: at, Stderr: true, Data: []byte("oops\n")}, {Time: at, Data: []byte("gun\n")},
		{Time: at, Data: []byte("next\n")}, {Data: []byte("no time\n")},
	}
	const stamp = "2026-01-02T03:04:05.000000006Z "
	for stamps, want := range map[bool][2]string{
		false: {"begun\nnext\nno time\n", "oops\n"},
		true:  {stamp + "begun\n" + stamp + "next\nno time\n", stamp + "oops\n"},
	} {
		var out, errs bytes.Buffer
		w := &logWriter{stamps: stamps, to: [2]io.Writer{&out, &errs}}
		for cut := range len(entries) {
			if err := w.write(entries[cut : cut+1]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.write(entries); err != nil {
			t.Fatal(err)
		}
		if out.String() != want[0]+want[0] || errs.String() != want[1]+want[1] {
			t.Errorf("%q and %q", out.String(), errs.String())
		}
	}
}
