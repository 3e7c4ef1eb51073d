package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/names"
)

// TestInvokeStatus has texts that runc 1.1.5 and crun 1.8.1 wrote.
func TestInvokeStatus(t *testing.T) {
	for _, test := range []struct {
		command, text string
		want          int
	}{
		{"nosuch", `runc create failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`, 127},
		{"/nosuch", `runc create failed: unable to start container process: exec: "/nosuch": stat /nosuch: no such file or directory`, 127},
		{"/etc", `runc create failed: unable to start container process: exec: "/etc": permission denied`, 126},
		{"/etc", `runc create failed: unable to start container process: exec: "/etc": is a directory`, 126},
		{"nosuch", `runc exec: exit status 255: exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`, 127},
		{"nosuch", "crun create: exit status 1: executable file `nosuch` not found in $PATH: No such file or directory", 127},
		{"/nosuch", "crun exec: exit status 255: executable file `/nosuch` not found in $PATH: No such file or directory", 127},
		{"/etc", "crun create: exit status 1: open executable: Operation not permitted", 126},
		{"/etc/passwd", "crun create: exit status 1: open executable: Permission denied", 126},
		{"true", `OCI runtime "nosuch" is not in PATH (/bin): install it`, 0},
		{"true", `log.json: no such file or directory): exec: "nosuchruntime": executable file not found in $PATH`, 0},
		{"true", "create task: context deadline exceeded", 0},
		{"true", `runc create failed: error mounting "/x" to rootfs at "/y": no such file or directory`, 0},
		{"true", `runc create failed: open /dev/x: permission denied`, 0},
	} {
		if got := invokeStatus(errors.New(test.text), test.command); got != test.want {
			t.Errorf("%q: %d, want %d", test.text, got, test.want)
		}
	}
}

func TestHumanSize(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB", 5 << 30: "5.0 GiB", 1 << 62: "4.0 EiB",
	} {
		if got := humanSize(bytes); got != want {
			t.Errorf("%d: %q, want %q", bytes, got, want)
		}
	}
}

func TestHumanAge(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	a := &app{now: func() time.Time { return now }}
	for age, want := range map[time.Duration]string{
		-time.Hour: "just now", 0: "just now", time.Second: "1 second ago", 59 * time.Second: "59 seconds ago", 90 * time.Second: "1 minute ago",
		2 * time.Hour: "2 hours ago", 36 * time.Hour: "1 day ago", 20 * 24 * time.Hour: "2 weeks ago", 800 * 24 * time.Hour: "2 years ago",
	} {
		if got := a.humanAge(now.Add(-age)); got != want {
			t.Errorf("%v: %q, want %q", age, got, want)
		}
	}
	if got := a.humanAge(time.Time{}); got != "-" {
		t.Errorf("no time: %q", got)
	}
}

func TestPSTable(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	a := &app{out: out, now: func() time.Time { return now }}
	seven, at := uint32(7), now.Add(-time.Minute)
	states := []containerState{
		{ID: "one", Image: "docker.io/library/busybox:latest", Command: []string{"sh", "-c", "a\tb\nc"}, Status: statusRunning, CreatedAt: now.Add(-time.Hour)},
		{ID: "a-longer-one", Command: []string{"a very long command that nobody wants to read to its end"}, Status: statusExited, ExitStatus: &seven, ExitedAt: &at, CreatedAt: now},
	}
	for _, columns := range []int{0, 85, 20} { // of no terminal, of one, of one that is too narrow
		if err := a.psTable(states, columns); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	want := "" +
		"CONTAINER      IMAGE            COMMAND                                    CREATED      STATUS\n" +
		"one            busybox:latest   sh -c a b c                                1 hour ago   running\n" +
		"a-longer-one   -                a very long command that nobody wants t…   just now     exited (7) 1 minute ago\n" +
		"CONTAINER      IMAGE            COMMAND          CREATED      STATUS\n" +
		"one            busybox:latest   sh -c a b c      1 hour ago   running\n" +
		"a-longer-one   -                a very long c…   just now     exited (7) 1 minute ago\n" +
		"CONTAINER      IMAGE            COMMAND   CREATED      STATUS\n" +
		"one            busybox:latest   sh -c …   1 hour ago   running\n" +
		"a-longer-one   -                a very…   just now     exited (7) 1 minute ago\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStateOf(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC))
	for name, test := range map[string]struct {
		labels map[string]string
		task   *task.Process
		want   string
		exit   int // -1: none
	}{
		"never ran":         {nil, nil, statusCreated, -1},
		"created task":      {nil, &task.Process{Status: task.Status_CREATED}, statusCreated, -1},
		"running":           {nil, &task.Process{Status: task.Status_RUNNING, Pid: 5}, statusRunning, -1},
		"paused":            {nil, &task.Process{Status: task.Status_PAUSED}, statusPaused, -1},
		"pausing":           {nil, &task.Process{Status: task.Status_PAUSING}, statusPausing, -1},
		"unknown":           {nil, &task.Process{}, statusUnknown, -1},
		"stopped":           {nil, &task.Process{Status: task.Status_STOPPED, ExitStatus: 3, ExitedAt: at}, statusExited, 3},
		"deleted":           {map[string]string{client.LabelExitStatus: "0", client.LabelExitedAt: "2026-01-02T03:04:05.000000006Z"}, nil, statusExited, 0},
		"deleted long ago":  {map[string]string{client.LabelExitStatus: "9"}, nil, statusExited, 9},
		"broken label":      {map[string]string{client.LabelExitStatus: "x"}, nil, statusCreated, -1},
		"label and new run": {map[string]string{client.LabelExitStatus: "9"}, &task.Process{Status: task.Status_RUNNING}, statusRunning, -1},
	} {
		t.Run(name, func(t *testing.T) {
			s := stateOf(&containers.Container{Id: "x", Labels: test.labels}, test.task)
			exit := -1
			if s.ExitStatus != nil {
				exit = int(*s.ExitStatus)
			}
			if s.Status != test.want || exit != test.exit {
				t.Errorf("%s, exit %d", s.Status, exit)
			}
		})
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"TERM": unix.SIGTERM, "sigterm": unix.SIGTERM, "9": unix.SIGKILL, "SIGUSR1": unix.SIGUSR1, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63,
		"": 0, "0": 0, "65": 0, "-9": 0, "NOSUCH": 0, "RTMIN+40": 0, "RTMINx": 0,
	} {
		got, err := parseSignal(text)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

func TestParseRuntime(t *testing.T) {
	for value, want := range map[string]struct{ name, binary string }{
		"":                      {"", ""},
		"io.containerd.runc.v2": {"io.containerd.runc.v2", ""},
		"io.containerd.kata.v2": {"io.containerd.kata.v2", ""},
		"crun":                  {client.DefaultRuntime, "crun"},
		"/usr/bin/youki":        {client.DefaultRuntime, "/usr/bin/youki"},
		"/opt/a.b/runc":         {client.DefaultRuntime, "/opt/a.b/runc"},
	} {
		name, options := parseRuntime(value)
		binary := ""
		if options != nil {
			binary = options.(*runc.Options).BinaryName
		}
		if name != want.name || binary != want.binary {
			t.Errorf("%q: %q, %q", value, name, binary)
		}
	}
}

func TestEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\n\nA=1\n  B=two words \nBERTH_TEST_SET\nBERTH_TEST_UNSET\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BERTH_TEST_SET", "set")
	got, err := environment([]string{file}, []string{"A=2"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"A=1", "B=two words ", "BERTH_TEST_SET=set", "BERTH_TEST_UNSET", "A=2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWithin(t *testing.T) {
	got := within("ns", []string{`topic=="/tasks/exit"`, ""})
	if diff := cmp.Diff([]string{`namespace=="ns",topic=="/tasks/exit"`, `namespace=="ns"`}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRandomNamesAreIdentifiers(t *testing.T) {
	for range 1000 {
		if err := names.Identifier(randomName()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDecodeAny(t *testing.T) {
	options, err := anypb.New(&runc.Options{BinaryName: "crun"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		in   *anypb.Any
		want string
	}{
		"none":    {nil, "<nil>"},
		"known":   {options, `{"binary_name":"crun"}`},
		"json":    {&anypb.Any{TypeUrl: "x", Value: []byte(`{"a":1}`)}, `{"a":1}`},
		"unknown": {&anypb.Any{TypeUrl: "x", Value: []byte{1, 2}}, `"AQI="`},
	} {
		got := "<nil>"
		if decoded := decodeAny(test.in); decoded != nil {
			got = string(decoded.Value)
		}
		if got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

func TestMessageMarksEveryLine(t *testing.T) {
	err := errors.Join(errors.New("one"), fmt.Errorf("two: %w", errors.New("three")), errors.New("three"), errors.New("one\n\n"))
	if got, want := message(err), "one\nberth: two: three"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
