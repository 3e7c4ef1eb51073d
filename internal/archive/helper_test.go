package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var stamp = time.Unix(1700000000, 123456789)

type item struct {
	tar.Header
	body string
}

// tarOf makes a tar. A header without a time gets stamp, one without a mode
// 0644 or 0755.
func tarOf(t testing.TB, items ...item) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, it := range items {
		h := it.Header
		if h.ModTime.IsZero() {
			h.ModTime = stamp
		}
		h.Format = tar.FormatPAX
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		h.Size = int64(len(it.body))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := tw.Write([]byte(it.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func file(name, body string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg}, body}
}

func folder(name string) item { return item{tar.Header{Name: name, Typeflag: tar.TypeDir}, ""} }

func link(name, target string) item {
	return item{tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}, ""}
}

func hard(name, target string) item {
	return item{tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}, ""}
}

func apply(root string, data []byte, o Options) error {
	_, err := Apply(context.Background(), root, bytes.NewReader(data), o)
	return err
}

func mustApply(t testing.TB, root string, o Options, items ...item) {
	t.Helper()
	if err := apply(root, tarOf(t, items...), o); err != nil {
		t.Fatal(err)
	}
}

// tree lists a directory tree in one line an entry, links not followed.
// Directories are a name with a slash, files have their content, whiteouts and
// opaque directories are marked.
func tree(t testing.TB, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, _ := filepath.Rel(root, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			name += "/"
			if value, err := getxattr(path, "trusted.overlay.opaque"); err == nil && value == "y" {
				name += " opaque"
			}
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			name += " -> " + target
		case info.Mode()&fs.ModeCharDevice != 0:
			name += fmt.Sprintf(" device %d", info.Sys().(*syscall.Stat_t).Rdev)
		default:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name += "=" + string(data)
		}
		lines = append(lines, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, ", ")
}

func getxattr(path, name string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(path, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func equal(t testing.TB, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// fullTree describes every attribute of every file below root.
func fullTree(t testing.TB, root string) []string {
	t.Helper()
	first := map[uint64]string{} // inode to its first name
	var lines []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d %d.%09d dev%d n%d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev, st.Nlink)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", st.Size, sha256.Sum256(data))
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = name
				}
				line += " first " + first[st.Ino]
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		for _, x := range xattrsOf(t, path) {
			line += " " + x
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattrsOf(t testing.TB, path string) []string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		value, err := getxattr(path, name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s=%q", name, value))
	}
	sort.Strings(all)
	return all
}

func asRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and trusted attributes")
	}
}
