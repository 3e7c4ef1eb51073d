package program

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/leak"
)

func TestCommand(t *testing.T) {
	leak.Check(t)
	t.Setenv("SECRET", "x")
	cmd, words := Command(t.Context(), "/bin/sh", []string{"-c", "env; pwd; echo no >&2; exit 3"}, []string{"A=b"})
	var out strings.Builder
	cmd.Stdout = &out
	err := Failed(t.Context(), "sh", cmd.Run(), words)
	if err == nil || err.Error() != `program sh: exit status 3 (it says: "no")` {
		t.Error(err)
	}
	if text := out.String(); strings.Contains(text, "SECRET") || !strings.Contains(text, "A=b\n") || !strings.Contains(text, "\n/\n") {
		t.Errorf("%q", text)
	}
}

// TestKilled: a program is killed with what it has started, and nothing of it
// holds up who waits.
func TestKilled(t *testing.T) {
	leak.Check(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	cmd, words := Command(ctx, "/bin/sh", []string{"-c", "sleep 1000 & wait"}, nil)
	start := time.Now()
	if err := Failed(ctx, "sh", cmd.Run(), words); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

func TestTail(t *testing.T) {
	var tail Tail
	for range 100 {
		if n, err := tail.Write([]byte(strings.Repeat("a", 100))); n != 100 || err != nil {
			t.Fatal(n, err)
		}
	}
	_, _ = tail.Write([]byte("end"))
	if s := tail.String(); len(s) != maxWords || !strings.HasSuffix(s, "aend") {
		t.Errorf("%d bytes", len(s))
	}
	_, _ = tail.Write([]byte(strings.Repeat("b", 3*maxWords) + "c"))
	if s := tail.String(); len(s) != maxWords || !strings.HasSuffix(s, "bc") || strings.Contains(s, "a") {
		t.Errorf("%d bytes", len(s))
	}
}

func TestTrusted(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p")
	if err := os.WriteFile(file, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Trusted(file); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(file, 0o722); err != nil {
		t.Fatal(err)
	}
	if err := Trusted(file); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Error(err)
	}
	if err := Trusted(file + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
