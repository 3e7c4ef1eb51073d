package archive

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

// changesOf lists changes, sorted.
func changesOf(t testing.TB, how func(context.Context, string, string, DiffOptions, func(Change) error) error, lower, upper string, o DiffOptions) []string {
	t.Helper()
	var all []string
	err := how(t.Context(), lower, upper, o, func(c Change) error {
		all = append(all, c.Path+" "+c.Kind.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// TestChangesOverlay changes a tree through a real overlay. Its upper directory
// tells the same as the two trees.
func TestChangesOverlay(t *testing.T) {
	asRoot(t)
	leak.Check(t)
	for seed := range uint64(25) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			lower := t.TempDir()
			scribble(t, r, lower, 40)
			upper, merged := overlay(t, lower, ",index=off,redirect_dir=off,metacopy=off")
			scribble(t, r, merged, 30)
			got := changesOf(t, ChangesUpper, lower, upper, DiffOptions{})
			want := changesOf(t, Changes, lower, merged, DiffOptions{})
			if !slices.Equal(got, want) {
				t.Errorf("the upper directory tells\n%s\nthe trees\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestChangesForms tells what is told of what.
func TestChangesForms(t *testing.T) {
	asRoot(t)
	for name, c := range map[string]struct {
		change func(root string) error
		want   string
	}{
		"nothing": {func(string) error { return nil }, ""},
		"read and copied up only": {func(r string) error {
			f, err := os.OpenFile(r+"/d/f", os.O_RDWR, 0)
			return errors.Join(err, f.Close())
		}, ""},
		"removed directory":  {func(r string) error { return os.RemoveAll(r + "/d") }, "/d D"},
		"file for directory": {func(r string) error { return errors.Join(os.RemoveAll(r+"/d"), os.WriteFile(r+"/d", nil, 0o600)) }, "/d C"},
		"made anew": {func(r string) error {
			return errors.Join(os.RemoveAll(r+"/d"), os.MkdirAll(r+"/d/e", 0o755), os.WriteFile(r+"/d/e/new", nil, 0o600))
		}, "/d C,/d/e C,/d/e/g D,/d/e/new A,/d/f D"},
		"added":   {func(r string) error { return os.MkdirAll(r+"/a/b", 0o755) }, "/a A,/a/b A"},
		"changed": {func(r string) error { return os.Chtimes(r+"/d/f", time.Time{}, time.Unix(9, 0)) }, "/d/f C"},
		"link":    {func(r string) error { return errors.Join(os.Remove(r+"/l"), os.Symlink("other", r+"/l")) }, "/l C"},
		"socket": {func(r string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			return errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: r + "/s"}), unix.Close(fd))
		}, ""},
	} {
		lower := t.TempDir()
		mustApply(t, lower, Options{}, folder("d"), file("d/f", "x"), folder("d/e"), file("d/e/g", "y"), link("l", "d"))
		upper, merged := overlay(t, lower, ",index=off,redirect_dir=off,metacopy=off")
		if err := c.change(merged); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := strings.Join(changesOf(t, ChangesUpper, lower, upper, DiffOptions{}), ","); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if got := strings.Join(changesOf(t, Changes, lower, merged, DiffOptions{}), ","); got != c.want {
			t.Errorf("%s, of both trees: %s, want %s", name, got, c.want)
		}
	}
}

// TestChangesOwners: what belongs to the same user on the inside is the same.
func TestChangesOwners(t *testing.T) {
	asRoot(t)
	lower, upper := t.TempDir(), t.TempDir()
	for _, root := range []string{lower, upper} {
		mustApply(t, root, Options{}, file("a", "x"), file("b", "x"))
	}
	if err := errors.Join(os.Chown(upper+"/a", 1000, 1000), os.Chown(upper+"/b", 1001, 1000)); err != nil {
		t.Fatal(err)
	}
	o := DiffOptions{Owner: func(uid, gid int) (int, int) { return uid % 1000, gid % 1000 }}
	if got := strings.Join(changesOf(t, Changes, lower, upper, o), ","); got != "/b C" {
		t.Errorf("got %s", got)
	}
	stop := errors.New("stop")
	if err := Changes(t.Context(), "", upper, o, func(Change) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}
