package diff

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
)

func TestCompressionVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/media-types.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Cases []struct {
			Type        string `json:"media_type"`
			Compression string
			Diff        bool
		}
	}
	if err := json.Unmarshal(data, &vectors); err != nil || len(vectors.Cases) < 20 {
		t.Fatal(len(vectors.Cases), err)
	}
	for _, c := range vectors.Cases {
		compression, layer := Compression(c.Type)
		if layer != c.Diff || compression != c.Compression {
			t.Errorf("%s: %q %v, want %q %v", c.Type, compression, layer, c.Compression, c.Diff)
		}
	}
}

// layer is a tar with a file of size bytes, a whiteout, and bytes after its end.
func layer(t testing.TB, size int) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range []struct{ name, body string }{{"d/file", strings.Repeat("layer ", size/6)}, {"d/.wh.gone", ""}} {
		if err := tw.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f.body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	buf.WriteString(strings.Repeat("after the end", 100000))
	return buf.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

func bind(dir string, options ...string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: dir, Options: append([]string{"rbind"}, options...)}}
}

func TestApplyCompressions(t *testing.T) {
	leak.Check(t)
	plain := layer(t, 3<<20)
	skippable := append([]byte{0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}, zstded(t, plain)...)
	parts := append(gzipped(t, plain[:1<<20]), gzipped(t, plain[1<<20:])...)
	for name, tc := range map[string]struct {
		mediaType string
		blob      []byte
	}{
		"oci plain":      {"application/vnd.oci.image.layer.v1.tar", plain},
		"oci gzip":       {"application/vnd.oci.image.layer.v1.tar+gzip", gzipped(t, plain)},
		"oci zstd":       {"application/vnd.oci.image.layer.v1.tar+zstd", zstded(t, plain)},
		"docker plain":   {"application/vnd.docker.image.rootfs.diff.tar", plain},
		"docker, zstd":   {"application/vnd.docker.image.rootfs.diff.tar", zstded(t, plain)},
		"docker gzip":    {"application/vnd.docker.image.rootfs.diff.tar.gzip", gzipped(t, plain)},
		"wrong label":    {"application/vnd.docker.image.rootfs.diff.tar.gzip", plain},
		"zstd with skip": {"application/vnd.oci.image.layer.v1.tar+zstd", skippable},
		"gzip members":   {"application/vnd.oci.image.layer.v1.tar+gzip", parts},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			got, err := Apply(context.Background(), iotest.HalfReader(bytes.NewReader(tc.blob)), tc.mediaType, bind(root, "rw"), Options{SyncFS: true})
			want := Result{MediaType: "application/vnd.oci.image.layer.v1.tar", DiffID: digest.FromBytes(plain), Size: int64(len(plain))}
			if err != nil || got != want {
				t.Fatalf("%+v, %v, want %+v", got, err, want)
			}
			if info, err := os.Stat(root + "/d/file"); err != nil || info.Size() != 3<<20-3<<20%6 {
				t.Error(info, err)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	leak.Check(t)
	plain := layer(t, 1<<20)
	packed := gzipped(t, plain)
	damaged := bytes.Clone(packed)
	damaged[len(damaged)/2] ^= 0xff
	disk := errors.New("the disk fails")
	const ociGzip = "application/vnd.oci.image.layer.v1.tar+gzip"
	for name, tc := range map[string]struct {
		mediaType string
		blob      io.Reader
		mounts    []mount.Mount
		o         Options
		want      error
		text      string
	}{
		"not a layer":    {mediaType: "application/octet-stream", want: errdefs.ErrNotImplemented, text: "octet-stream"},
		"no media type":  {want: errdefs.ErrNotImplemented, text: `""`},
		"erofs":          {mediaType: "application/vnd.erofs.layer.v1", want: errdefs.ErrNotImplemented, text: "erofs"},
		"encrypted":      {mediaType: "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", want: errdefs.ErrNotImplemented, text: `"encrypted"`},
		"damaged":        {mediaType: ociGzip, blob: bytes.NewReader(damaged), want: errdefs.ErrInvalidArgument, text: "damaged gzip"},
		"cut":            {mediaType: ociGzip, blob: bytes.NewReader(packed[:len(packed)-100]), want: errdefs.ErrInvalidArgument, text: "damaged gzip"},
		"cut tar":        {mediaType: "application/vnd.oci.image.layer.v1.tar", blob: bytes.NewReader(plain[:1<<19]), want: errdefs.ErrInvalidArgument, text: "too early"},
		"no tar":         {mediaType: ociGzip, blob: strings.NewReader(strings.Repeat("no tar", 1000)), want: errdefs.ErrInvalidArgument, text: "not a tar"},
		"failing reader": {mediaType: ociGzip, blob: io.MultiReader(bytes.NewReader(packed[:100]), iotest.ErrReader(disk)), want: disk},
		"failing early":  {mediaType: ociGzip, blob: iotest.ErrReader(disk), want: disk},
		"too large":      {mediaType: ociGzip, o: Options{MaxSize: 1 << 20}, want: errdefs.ErrResourceExhausted, text: "1048576"},
		"too large file": {mediaType: ociGzip, o: Options{MaxSize: 1000}, want: errdefs.ErrResourceExhausted, text: "bytes"},
		"no mounts":      {mediaType: ociGzip, mounts: []mount.Mount{}, want: errdefs.ErrInvalidArgument},
		"read-only":      {mediaType: ociGzip, mounts: bind(t.TempDir(), "ro"), want: errdefs.ErrInvalidArgument, text: "read-only"},
		"view": {mediaType: ociGzip, mounts: []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a:/b"}}},
			want: errdefs.ErrInvalidArgument, text: "read-only"},
		"relative": {mediaType: ociGzip, mounts: bind("none/such"), want: errdefs.ErrInvalidArgument, text: "absolute"},
		"missing":  {mediaType: ociGzip, mounts: bind("/none/such"), want: os.ErrNotExist, text: "/none/such"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.blob == nil {
				tc.blob = bytes.NewReader(packed)
			}
			if tc.mounts == nil {
				tc.mounts = bind(t.TempDir())
			}
			_, err := Apply(context.Background(), tc.blob, tc.mediaType, tc.mounts, tc.o)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Error(err)
			}
		})
	}
}

func TestApplyEndsWithContext(t *testing.T) {
	leak.Check(t)
	blob := gzipped(t, layer(t, 8<<20))
	for _, at := range []int{0, 1000, len(blob) / 2} {
		ctx, cancel := context.WithCancelCause(context.Background())
		reason := errors.New("the reason")
		r := io.MultiReader(bytes.NewReader(blob[:at]), readerFunc(func(p []byte) (int, error) {
			cancel(reason)
			return copy(p, blob[at:at+1]), nil // for ever
		}))
		if _, err := Apply(ctx, r, "application/vnd.oci.image.layer.v1.tar+gzip", bind(t.TempDir()), Options{}); !errors.Is(err, reason) && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("cancelled at %d: %v", at, err)
		}
	}
	// A plain stream goes on, so it is the context that ends it.
	ctx, cancel := context.WithCancelCause(context.Background())
	reason := errors.New("the reason")
	plain := layer(t, 1<<20)
	r := io.MultiReader(bytes.NewReader(plain[:1<<20]), readerFunc(func(p []byte) (int, error) {
		cancel(reason)
		return len(p), nil
	}))
	if _, err := Apply(ctx, r, "application/vnd.oci.image.layer.v1.tar", bind(t.TempDir()), Options{}); !errors.Is(err, reason) {
		t.Error(err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestApplyTargets applies a whiteout through each kind of mounts: the merged
// result is the same.
func TestApplyTargets(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	blob := layer(t, 1<<10)
	for name, make := range map[string]func(t *testing.T, lower, upper, work string) (mounts []mount.Mount, direct bool){
		"overlay": func(t *testing.T, lower, upper, work string) ([]mount.Mount, bool) {
			return overlay(lower, upper, work), true
		},
		"overlay on two": func(t *testing.T, lower, upper, work string) ([]mount.Mount, bool) {
			return overlay(lower+":"+t.TempDir(), upper, work), true
		},
		"mounted overlay": func(t *testing.T, lower, upper, work string) ([]mount.Mount, bool) {
			m := overlay(lower, upper, work)
			m[0].Options = append(m[0].Options, "redirect_dir=on")
			return m, false
		},
		"stacked": func(t *testing.T, lower, upper, work string) ([]mount.Mount, bool) {
			m := overlay(lower, upper, work)
			return append(m, mount.Mount{Type: "tmpfs", Source: "tmpfs", Target: "other"}), false
		},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			lower, upper, work := t.TempDir(), t.TempDir(), t.TempDir()
			for _, f := range []string{"d/gone", "d/stays", "other/x"} {
				if err := os.MkdirAll(filepath.Dir(lower+"/"+f), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(lower+"/"+f, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(lower+"/d", 0o711); err != nil {
				t.Fatal(err)
			}
			mounts, direct := make(t, lower, upper, work)
			if _, err := Apply(context.Background(), bytes.NewReader(blob), "application/vnd.oci.image.layer.v1.tar", mounts, Options{}); err != nil {
				t.Fatal(err)
			}
			// The kernel leaves a directory in work once it has mounted it.
			if used, err := os.ReadDir(work); err != nil || (len(used) == 0) != direct {
				t.Errorf("in work: %v, %v", used, err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(upper+"/d/gone", &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
				t.Errorf("no whiteout: %o, %v", st.Mode, err)
			}
			err := mount.WithTemp(context.Background(), overlay(lower, upper, work), func(root string) error {
				names, err := filepath.Glob(root + "/d/*")
				for i := range names {
					names[i] = filepath.Base(names[i])
				}
				if !slices.Equal(names, []string{"file", "stays"}) {
					t.Errorf("merged: %v", names)
				}
				if info, err := os.Stat(root + "/d"); err != nil || info.Mode().Perm() != 0o711 {
					t.Errorf("d: %v, %v", info.Mode(), err)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func overlay(lower, upper, work string) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"index=off", "lowerdir=" + lower, "upperdir=" + upper, "workdir=" + work}}}
}

func TestSplitLower(t *testing.T) {
	for list, want := range map[string][]string{
		"/a":              {"/a"},
		"/a:/b":           {"/a", "/b"},
		`/a\:b:/c\\d`:     {"/a:b", `/c\d`},
		"/a::/data":       {"/a", "", "/data"},
		`/ends with\`:     {`/ends with\`},
		"/a:/b:/c:/d/e/f": {"/a", "/b", "/c", "/d/e/f"},
	} {
		if got := splitLower(list); !slices.Equal(got, want) {
			t.Errorf("%s: %q", list, got)
		}
	}
}

// TestMemory: a layer of any size takes a bounded amount of it.
func TestMemory(t *testing.T) {
	blob := gzipped(t, layer(t, 64<<20))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Apply(context.Background(), bytes.NewReader(blob), "application/vnd.oci.image.layer.v1.tar+gzip", bind(t.TempDir()), Options{}); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
		t.Errorf("allocated %d bytes", used)
	}
}

// TestCutReader: a reader that ends too early by its own account is no short tar.
func TestCutReader(t *testing.T) {
	data := make([]byte, 2000) // a tar's end, and some of what follows it
	for _, cut := range []error{io.ErrUnexpectedEOF, errors.New("the line is cut")} {
		r := io.MultiReader(bytes.NewReader(data), iotest.ErrReader(cut))
		_, err := Apply(t.Context(), r, ociLayer, []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rw", "rbind"}}}, Options{})
		if !errors.Is(err, cut) || errdefs.IsInvalidArgument(err) {
			t.Errorf("%v ends as %v", cut, err)
		}
	}
}
