package containerd

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/test/harness"
)

// TestArchives has containerd take in what berth exports, and berth what containerd
// does: it is the same image.
func TestArchives(t *testing.T) {
	theirs := newDaemon(t)
	ours, err := harness.New(programs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ours.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := ours.Start(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	berth := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, programs.Path("berth"), args...)
		cmd.Env = append(os.Environ(), "BERTH_ADDRESS="+ours.Address, harness.Race)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("berth %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	digest := func() string {
		t.Helper()
		for line := range strings.Lines(theirs.ctr("image", "ls")) {
			if fields := strings.Fields(line); len(fields) > 2 && fields[0] == harness.ImageName {
				return fields[2]
			}
		}
		t.Fatal("containerd has no such image")
		return ""
	}
	before := digest()
	from := filepath.Join(dir, "theirs.tar")
	theirs.ctr("image", "export", from, harness.ImageName)
	if said := berth("images", "import", from); !strings.Contains(said, before) {
		t.Errorf("containerd's archive gives\n%s, it has %s", said, before)
	}
	theirs.ctr("image", "rm", "--sync", harness.ImageName)
	to := filepath.Join(dir, "ours.tar")
	berth("images", "export", "-o", to, harness.ImageName)
	theirs.ctr("image", "import", to)
	if after := digest(); after != before {
		t.Errorf("berth's archive gives %s, it has %s", after, before)
	}
	if check := theirs.ctr("image", "check"); !strings.Contains(check, "complete") {
		t.Errorf("containerd's view of it:\n%s", check)
	}
}
