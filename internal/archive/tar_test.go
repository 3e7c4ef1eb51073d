package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestLikeTar compares with what GNU tar makes of the same archive of a real
// tree, in each of its formats.
func TestLikeTar(t *testing.T) {
	asRoot(t)
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed")
	}
	source := t.TempDir()
	for _, dir := range []string{"/etc", "/usr/share/zoneinfo"} {
		if _, err := os.Stat(dir); err == nil {
			run(t, "cp", "-a", dir, source)
		}
	}
	odd(t, source)
	for _, format := range []string{"--format=gnu", "--format=pax", "--format=oldgnu"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			archive, theirs, ours := dir+"/a.tar", dir+"/theirs", dir+"/ours"
			args := []string{"--numeric-owner", "--sparse", "-C", source, "-cf", archive, "."}
			if format == "--format=pax" {
				args = append([]string{"--xattrs", "--xattrs-include=*"}, args...)
			}
			run(t, "tar", append([]string{format}, args...)...)
			for _, d := range []string{theirs, ours} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			run(t, "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-p", "-C", theirs, "-xf", archive)
			f, err := os.Open(archive)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := Apply(context.Background(), ours, f, Options{}); err != nil {
				t.Fatal(err)
			}
			want, got := fullTree(t, theirs), fullTree(t, ours)
			if len(got) < 15 || len(got) != len(want) {
				t.Errorf("%d entries, want %d", len(got), len(want))
			}
			for i := range min(len(got), len(want)) {
				if got[i] != want[i] {
					t.Errorf("got  %s\nwant %s", got[i], want[i])
				}
			}
			if blocks(t, ours+"/sparse") >= 2048 {
				t.Error("the sparse file takes all its blocks")
			}
		})
	}
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

// odd makes files that /etc rarely has.
func odd(t *testing.T, dir string) {
	t.Helper()
	deep := filepath.Join(dir, strings.Repeat(strings.Repeat("d", 100)+"/", 3))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(40) { // more than fit into one old GNU header
		if _, err := sparse.WriteAt([]byte("data"), i*1<<20+i); err != nil {
			t.Fatal(err)
		}
	}
	if err := sparse.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	if err := sparse.Close(); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(deep+"/file", []byte("x"), 0o604),
		os.Symlink(strings.Repeat("t", 200), dir+"/longlink"),
		os.Link(deep+"/file", dir+"/hard"),
		os.WriteFile(dir+"/suid", nil, 0o755),
		os.Lchown(dir+"/suid", 12345678, 23456789),
		os.Chmod(dir+"/suid", 0o755|os.ModeSetuid|os.ModeSetgid),
		unix.Mkfifo(dir+"/fifo", 0o640),
		unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(dir+"/disk", unix.S_IFBLK|0o660, int(unix.Mkdev(259, 300))),
		os.Lchown(dir+"/longlink", 3, 4),
		unix.Setxattr(dir+"/suid", "user.a", []byte("b\n=\x00c"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestSparseFormats reads the PAX forms that GNU tar writes on request.
func TestSparseFormats(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed")
	}
	source := t.TempDir()
	odd(t, source)
	want, err := os.ReadFile(source + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"0.0", "0.1", "1.0"} {
		archive, root := t.TempDir()+"/a.tar", t.TempDir()
		run(t, "tar", "--format=pax", "--sparse", "--sparse-version="+version, "-C", source, "-cf", archive, "sparse")
		data, err := os.ReadFile(archive)
		if err != nil {
			t.Fatal(err)
		}
		if err := apply(root, data, Options{}); err != nil {
			t.Fatal(version, err)
		}
		got, err := os.ReadFile(root + "/sparse")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("version %s: %d bytes, %v", version, len(got), err)
		}
		if n := blocks(t, root+"/sparse"); n >= 2048 {
			t.Errorf("version %s: %d blocks", version, n)
		}
		// A hole is content too.
		if err := apply(t.TempDir(), data, Options{MaxSize: 32 << 20}); err == nil {
			t.Errorf("version %s: larger than allowed", version)
		}
	}
}

// manyFiles is a layer of n small files in n/100 directories.
func manyFiles(t testing.TB, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "many.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(f)
	body := bytes.Repeat([]byte("0123456789abcdef"), 256)
	for i := range n {
		if i%100 == 0 {
			if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/d%04d/", i/100), Typeflag: tar.TypeDir, Mode: 0o755, ModTime: stamp}); err != nil {
				t.Fatal(err)
			}
		}
		size := int64(i*37) % 4096
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/d%04d/file%06d", i/100, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: stamp}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(body[:size]); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{tw.Close(), f.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func benchmark(b *testing.B, extract func(archive, root string) error) {
	archive := manyFiles(b, 20000)
	for b.Loop() {
		b.StopTimer()
		root, err := os.MkdirTemp("", "archive-bench-")
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := extract(archive, root); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.RemoveAll(root); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkApply(b *testing.B) {
	benchmark(b, func(archive, root string) error {
		f, err := os.Open(archive)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = Apply(context.Background(), root, f, Options{})
		return err
	})
}

// BenchmarkTar is what BenchmarkApply has to be compared with.
func BenchmarkTar(b *testing.B) {
	benchmark(b, func(archive, root string) error {
		return exec.Command("tar", "--numeric-owner", "-p", "-C", root, "-xf", archive).Run()
	})
}

// BenchmarkReadTar is the part that archive/tar takes.
func BenchmarkReadTar(b *testing.B) {
	benchmark(b, func(archive, root string) error {
		f, err := os.Open(archive)
		if err != nil {
			return err
		}
		defer f.Close()
		for tr := tar.NewReader(f); ; {
			if _, err := tr.Next(); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, tr); err != nil {
				return err
			}
		}
	})
}
