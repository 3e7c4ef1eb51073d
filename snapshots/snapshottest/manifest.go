package snapshottest

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// must fails the test on the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// everything puts a file of every kind into root.
func everything(t *testing.T, root string) {
	t.Helper()
	p := func(name string) string { return filepath.Join(root, name) }
	must(t,
		os.WriteFile(p("plain"), []byte("plain"), 0o640),
		os.WriteFile(p("empty"), nil, 0o600),
		os.WriteFile(p("owned"), []byte("x"), 0o644), os.Lchown(p("owned"), 1234, 5678),
		os.WriteFile(p("setuid"), []byte("x"), 0o755), os.Lchown(p("setuid"), 1, 2), unix.Chmod(p("setuid"), 0o6755),
		os.WriteFile(p("capable"), []byte("x"), 0o755),
		// version 2, effective, CAP_NET_BIND_SERVICE
		unix.Lsetxattr(p("capable"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		os.MkdirAll(p("dir/deep/er"), 0o755), unix.Chmod(p("dir"), 0o1777), os.Lchown(p("dir"), 7, 8),
		unix.Lsetxattr(p("dir"), "user.note", []byte("directory"), 0),
		unix.Lsetxattr(p("plain"), "user.note", []byte(strings.Repeat("long", 200)), 0),
		unix.Lsetxattr(p("plain"), "user.empty", nil, 0),
		os.WriteFile(p("dir/deep/er/file"), []byte("deep"), 0o644),
		os.Link(p("plain"), p("dir/hardlink")), os.Link(p("plain"), p("another")),
		os.Symlink("dir/deep", p("link")), os.Symlink("/etc/passwd", p("absolute")), os.Symlink("nowhere", p("dangling")),
		os.Lchown(p("link"), 11, 12),
		unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(p("loop"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 0))),
		unix.Mkfifo(p("fifo"), 0o620), unix.Mknod(p("socket"), unix.S_IFSOCK|0o600, 0),
		os.WriteFile(p("name with\n\xff"), []byte("odd"), 0o644),
		sparse(p("sparse")),
	)
	for _, name := range []string{"plain", "dir/deep", "link", "fifo"} {
		stamp := []unix.Timespec{unix.NsecToTimespec(time.Unix(1e9, 123456789).UnixNano()), unix.NsecToTimespec(time.Unix(5e8, 987654321).UnixNano())}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p(name), stamp, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// sparse makes a file of 16 MiB with 8 KiB of data in it.
func sparse(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, off := range []int64{0, 8 << 20} {
		if _, err := f.WriteAt([]byte(strings.Repeat("data", 1024)), off); err != nil {
			return err
		}
	}
	return f.Truncate(16 << 20)
}

// manifest describes every file below root in one line each: all that a copy
// has to keep.
func manifest(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	linked := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := "." + strings.TrimPrefix(path, root)
		line := fmt.Sprintf("%q %o %d:%d mtime %d.%09d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d bytes %x", st.Size, sha256.Sum256(data))
			if st.Nlink > 1 {
				if first, ok := linked[st.Ino]; ok {
					line += " is " + first
				} else {
					linked[st.Ino] = name
				}
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " to " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		attrs, err := xattrs(path)
		lines = append(lines, line+attrs)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattrs(path string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return "", err
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("%s of %s: %w", name, path, err)
		}
		all = append(all, fmt.Sprintf(" %s=%x", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, ""), nil
}

// same fails the test where two manifests differ.
func same(t *testing.T, got, want []string) {
	t.Helper()
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("unexpected: %s", line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("missing: %s", line)
		}
	}
}
