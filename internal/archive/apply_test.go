package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestAttributes(t *testing.T) {
	asRoot(t)
	root := t.TempDir()
	dir := folder("d/")
	dir.Mode, dir.Uid, dir.Gid = 0o1777, 7, 8
	suid := file("d/suid", "x")
	suid.Mode, suid.Uid, suid.Gid = 0o6755, 1000, 1001
	suid.PAXRecords = map[string]string{
		"SCHILY.xattr.user.note":              "a\x00b",
		"SCHILY.xattr.trusted.overlay.opaque": "y",
		"SCHILY.xattr.user.overlay.redirect":  "/etc",
		// CAP_NET_RAW, revision 2.
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	}
	sym := link("d/sym", "../nowhere")
	sym.Uid, sym.Gid = 5, 6
	sym.PAXRecords = map[string]string{"SCHILY.xattr.trusted.note": "on a link", "SCHILY.xattr.user.note": "can't be"}
	dev := item{tar.Header{Name: "d/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666, Gid: 4}, ""}
	big := item{tar.Header{Name: "d/disk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000, Mode: 0o660}, ""}
	fifo := item{tar.Header{Name: "d/fifo", Typeflag: tar.TypeFifo, Mode: 0o602}, ""}
	mustApply(t, root, Options{}, folder("./"), dir, suid, sym, dev, big, fifo, hard("d/same", "/d/suid"))
	want := []string{
		`. 40755 0:0 1700000000.123456789 dev0 n3`,
		`d 41777 7:8 1700000000.123456789 dev0 n2`,
		`d/disk 60660 0:0 1700000000.123456789 dev286327664 n1`,
		`d/fifo 10602 0:0 1700000000.123456789 dev0 n1`,
		`d/null 20666 0:4 1700000000.123456789 dev259 n1`,
		`d/same 106755 1000:1001 1700000000.123456789 dev0 n2 1 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881 first d/same security.capability="\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" user.note="a\x00b"`,
		`d/suid 106755 1000:1001 1700000000.123456789 dev0 n2 1 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881 first d/same security.capability="\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" user.note="a\x00b"`,
		`d/sym 120777 5:6 1700000000.123456789 dev0 n1 -> ../nowhere trusted.note="on a link"`,
	}
	equal(t, strings.Join(fullTree(t, root), "\n"), strings.Join(want, "\n"))
}

func TestAccessTime(t *testing.T) {
	root := t.TempDir()
	f := file("f", "x")
	f.AccessTime = stamp.Add(5e9)
	mustApply(t, root, Options{}, f)
	var st unix.Stat_t
	if err := unix.Stat(root+"/f", &st); err != nil {
		t.Fatal(err)
	}
	if st.Atim.Sec != 1700000005 || st.Mtim.Sec != 1700000000 {
		t.Errorf("access %d, modification %d", st.Atim.Sec, st.Mtim.Sec)
	}
}

// Directory times hold although files come into them later, through whatever
// name, also when more directories are in use than are kept open.
func TestDirectoryTimes(t *testing.T) {
	root := t.TempDir()
	items := []item{folder("a"), folder("b"), link("b/toa", "../a"), file("b/toa/x", "1")}
	for i := range maxOpenDirs + 50 {
		name := "d" + strings.Repeat("x", i%200) + "/" + strings.Repeat("y", 1+i/200)
		items = append(items, folder(name), file(name+"/f", ""))
	}
	items = append(items, file("b/toa/z", "2"), file("a/y", "3"), file("old/new", ""))
	if err := os.Mkdir(root+"/old", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(root+"/old", stamp, stamp); err != nil {
		t.Fatal(err)
	}
	mustApply(t, root, Options{}, items...)
	for _, it := range items {
		if it.Typeflag != tar.TypeDir {
			continue
		}
		if info, err := os.Stat(filepath.Join(root, it.Name)); err != nil || !info.ModTime().Equal(stamp) {
			t.Errorf("%s: %v, %v", it.Name, info.ModTime(), err)
		}
	}
	if info, err := os.Stat(root + "/old"); err != nil || !info.ModTime().Equal(stamp) {
		t.Errorf("a directory that was there: %v, %v", info.ModTime(), err)
	}
}

func TestReplacing(t *testing.T) {
	root := t.TempDir()
	mustApply(t, root, Options{},
		file("file", "1"), file("dir/a", ""), link("link", "dir"), file("file2", ""), hard("file3", "file2"))
	mustApply(t, root, Options{},
		file("dir", "was a directory"),
		folder("file"), file("file/in", "was a file"),
		file("link", "was a link"),
		hard("file2", "file2"), hard("file3", "file2"),
		file("twice", "first"), file("twice", "second"),
		link("again", "x"), folder("again"), file("again/f", ""), link("again", "y"))
	equal(t, tree(t, root), "again -> y, dir=was a directory, file/, file/in=was a file, file2=, file3=, link=was a link, twice=second")
}

func TestParents(t *testing.T) {
	root := t.TempDir()
	mustApply(t, root, Options{},
		folder("usr/lib"), link("lib", "usr/lib"), file("lib/a", "1"),
		link("abs", "/usr"), file("abs/lib/b", "2"),
		link("up", "../../../usr"), file("up/c", "3"),
		link("dangling", "new/place"), file("dangling/d", "4"),
		link("round", "usr/../round2"), link("round2", "."), file("round/e", "5"),
		link("self", "/"), file("self/self/f", "6"))
	equal(t, tree(t, root), "abs -> /usr, dangling -> new/place, e=5, f=6, lib -> usr/lib, new/, new/place/, new/place/d=4, "+
		"round -> usr/../round2, round2 -> ., self -> /, up -> ../../../usr, usr/, usr/c=3, usr/lib/, usr/lib/a=1, usr/lib/b=2")
	if info, err := os.Stat(root + "/new/place"); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode of a directory that the tar does not have: %v, %v", info.Mode(), err)
	}
}

// A link that is replaced must not lead to where it led before.
func TestLinkIsNotRemembered(t *testing.T) {
	root := t.TempDir()
	mustApply(t, root, Options{}, folder("a"), folder("b"), link("l", "a"), file("l/1", ""), link("l", "b"), file("l/2", ""),
		folder("l"), file("l/3", ""))
	equal(t, tree(t, root), "a/, a/1=, b/, b/2=, l/, l/3=")
}

func TestLongNames(t *testing.T) {
	for name, format := range map[string]tar.Format{"pax": tar.FormatPAX, "gnu": tar.FormatGNU} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			long := strings.Repeat(strings.Repeat("n", 250)+"/", 10) + "end"
			var buf bytes.Buffer
			tw := tar.NewWriter(&buf)
			for _, h := range []tar.Header{
				{Name: long, Typeflag: tar.TypeReg, Mode: 0o600},
				{Name: "l", Typeflag: tar.TypeSymlink, Linkname: long},
				{Name: "h", Typeflag: tar.TypeLink, Linkname: long},
			} {
				h.Format = format
				if err := tw.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
			}
			tw.Close()
			if err := apply(root, buf.Bytes(), Options{}); err != nil {
				t.Fatal(err)
			}
			a, err := os.Stat(root + "/l")
			b, err2 := os.Stat(root + "/h")
			if err != nil || err2 != nil || !os.SameFile(a, b) {
				t.Error(err, err2)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	xattr := file("f", "")
	xattr.PAXRecords = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", maxXattrValue+1)}
	xname := file("f", "")
	xname.PAXRecords = map[string]string{"SCHILY.xattr.user." + strings.Repeat("v", 300): "v"}
	owner := file("f", "")
	owner.Uid = 1 << 40
	for name, tc := range map[string]struct {
		item item
		o    Options
		want error
		text string
	}{
		"xattr value":    {xattr, Options{}, errdefs.ErrInvalidArgument, "extended attribute"},
		"xattr name":     {xname, Options{}, errdefs.ErrInvalidArgument, "extended attribute"},
		"owner":          {owner, Options{}, errdefs.ErrInvalidArgument, "owner"},
		"name":           {file(strings.Repeat("a/", 2100)+"a", ""), Options{}, errdefs.ErrInvalidArgument, "4095"},
		"component":      {file(strings.Repeat("a", 256), ""), Options{}, errdefs.ErrInvalidArgument, "name too long"},
		"in a component": {file(strings.Repeat("a", 256)+"/b", ""), Options{}, errdefs.ErrInvalidArgument, "name too long"},
		"size":           {file("f", "12345"), Options{MaxSize: 4}, errdefs.ErrResourceExhausted, "5 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			err := apply(t.TempDir(), tarOf(t, tc.item), tc.o)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Error(err)
			}
		})
	}
}

func TestSize(t *testing.T) {
	size, err := Apply(context.Background(), t.TempDir(), bytes.NewReader(tarOf(t, file("a", "12"), folder("d"), file("d/b", "345"), hard("c", "a"))), Options{})
	if size != 5 || err != nil {
		t.Errorf("%d, %v", size, err)
	}
	size, err = Apply(context.Background(), t.TempDir(), strings.NewReader(""), Options{})
	if size != 0 || err != nil {
		t.Errorf("nothing at all: %d, %v", size, err)
	}
}

func TestBrokenTars(t *testing.T) {
	whole := tarOf(t, file("a", strings.Repeat("content", 1000)), file("b", "x"))
	damaged := bytes.Clone(whole)
	damaged[1024+3] ^= 0xff
	for name, data := range map[string][]byte{
		"in the header":  whole[:1024+100],
		"in the content": whole[:3000],
		"damaged":        damaged,
		"no tar":         bytes.Repeat([]byte("no tar at all"), 100),
	} {
		err := apply(t.TempDir(), data, Options{})
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What the reader below says is not taken for a fault of the tar.
	disk := errors.New("the disk fails")
	r := io.MultiReader(bytes.NewReader(whole[:3000]), iotest.ErrReader(disk))
	if _, err := Apply(context.Background(), t.TempDir(), r, Options{}); !errors.Is(err, disk) || errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("failing reader: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	reason := errors.New("the reason")
	// The context ends in the middle of the content.
	whole := tarOf(t, file("a", strings.Repeat("x", 10<<20)))
	r := io.MultiReader(bytes.NewReader(whole[:5<<20]), readerFunc(func(p []byte) (int, error) {
		cancel(reason)
		clear(p)
		return len(p), nil
	}))
	if _, err := Apply(ctx, t.TempDir(), r, Options{}); !errors.Is(err, reason) {
		t.Error(err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestTolerate: only what a file system can't have is let pass.
func TestTolerate(t *testing.T) {
	for _, c := range []struct {
		name    string
		err     error
		userNS  bool
		special bool
		passes  bool
	}{
		{"user.a", nil, false, false, true},
		{"user.a", unix.ENOTSUP, false, false, true},
		{"trusted.a", unix.ENOTSUP, false, false, true},
		{"user.a", unix.EPERM, false, true, true},
		{"user.a", unix.EPERM, false, false, false},
		{"trusted.a", unix.EPERM, false, true, false},
		{"trusted.a", unix.EPERM, true, false, true},
		{"user.a", unix.ENOSPC, false, false, false},
		{capability, unix.ENOTSUP, false, false, false},
		{capability, unix.EPERM, true, false, false},
	} {
		a := &applier{o: Options{UserNS: c.userNS}}
		if err := a.tolerate(c.name, c.err, c.special); (err == nil) != c.passes || err != nil && !errors.Is(err, c.err) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
