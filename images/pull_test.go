package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/internal/testregistry"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/remotes"
)

// shelf is a registry in memory. Real ones are in TestRegistry.
type shelf struct {
	t      testing.TB
	target ocispec.Descriptor
	blobs  map[digest.Digest][]byte
	// wrap changes what is sent of a blob; nil: nothing.
	wrap func(d ocispec.Descriptor, offset int64, r io.Reader) (io.Reader, error)

	mu    sync.Mutex // guards asked
	asked map[digest.Digest][]int64
}

func shelve(t testing.TB, l *testimage.Layout, target ocispec.Descriptor) *shelf {
	target.Annotations = nil
	return &shelf{t: t, target: target, blobs: l.Blobs, asked: map[digest.Digest][]int64{}}
}

func (s *shelf) Reference() remotes.Reference {
	return remotes.Reference{Registry: "registry.test", Repository: "a/b", Tag: "1"}
}

func (s *shelf) Get(context.Context) (ocispec.Descriptor, []byte, error) {
	return s.target, s.blobs[s.target.Digest], nil
}

func (s *shelf) Manifest(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	return s.blobs[d.Digest], nil
}

func (s *shelf) Blob(_ context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	s.mu.Lock()
	s.asked[d.Digest] = append(s.asked[d.Digest], offset)
	s.mu.Unlock()
	data, ok := s.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, errdefs.ErrNotFound)
	}
	var r io.Reader = bytes.NewReader(data[offset:])
	if s.wrap != nil {
		var err error
		if r, err = s.wrap(d, offset, r); err != nil {
			return nil, err
		}
	}
	return io.NopCloser(r), nil
}

func (s *shelf) PushBlob(context.Context, ocispec.Descriptor, []string, func() (io.ReadCloser, error)) (remotes.Pushed, error) {
	return "", errdefs.ErrNotImplemented
}

func (s *shelf) PushManifest(context.Context, ocispec.Descriptor, []byte, string) error {
	return errdefs.ErrNotImplemented
}

// offsets gives the offsets from which a blob was asked for.
func (s *shelf) offsets(d digest.Digest) []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked[d])
}

// drop removes an image and everything that was its.
func (w *world) drop(name string) {
	w.t.Helper()
	if err := w.db.Images(scope).Delete(bg, name, nil); err != nil {
		w.t.Fatal(err)
	}
	w.empty()
}

// TestRegistry pushes to a real registry, and pulls what it pushed.
func TestRegistry(t *testing.T) {
	w := newWorld(t)
	keys := testregistry.MakeKeys(t, t.TempDir())
	host := testregistry.Start(t, true, &keys)
	client := remotes.New(remotes.Config{})
	t.Cleanup(client.Close)
	certs := t.TempDir()
	w.copyFile(keys.CA, filepath.Join(certs, host, "ca.crt"))
	open := func(name string) *remotes.Repository {
		ref, err := remotes.ParseReference(host + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := client.Open(ref, remotes.Access{HostsDir: certs, Credentials: func(context.Context, remotes.CredentialRequest) (remotes.Credential, error) {
			return remotes.Credential{Username: testregistry.User, Password: testregistry.Password}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}

	l, index, both := several(t, host+"/a/b:1", small(t, "", here), small(t, "", other))
	made := w.mustImport(archiveOf(t, l), ImportOptions{AllPlatforms: true, NoUnpack: true})
	if got, err := w.Push(bg, scope, made.Target, open("a/b:1"), PushOptions{}, nil); err != nil || got.Digest != index.Digest {
		t.Fatal(got, err)
	}
	if got, err := w.Push(bg, scope, made.Target, open("a/b:other"), PushOptions{Platforms: []string{"linux/s390x"}}, nil); err != nil || got.Digest != both[1].Digest {
		t.Fatal(got, err)
	}
	if _, err := w.Push(bg, scope, made.Target, open("a/b:none"), PushOptions{Platforms: []string{"plan9/386"}}, nil); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	w.drop(made.Name)

	for _, tc := range []struct {
		name  string
		o     PullOptions
		blobs int // that are there afterwards
		chain bool
	}{
		{"a/b:1", PullOptions{}, 1 + 4, true},
		{"a/b:1", PullOptions{NoUnpack: true, AllPlatforms: true}, 1 + 7, false},
		{"a/b:1", PullOptions{AllPlatforms: true}, 1 + 7, true},
		{"a/b:1", PullOptions{NoUnpack: true, Documents: true}, 1 + 4 + 2, false},
		{"a/b:1", PullOptions{NoUnpack: true, Platforms: []string{"linux/s390x"}}, 1 + 4, false},
		{"a/b:1", PullOptions{Unpack: []UnpackOptions{{Snapshotter: "native"}}, Labels: map[string]string{"a": "b"}}, 1 + 4, true},
		{"a/b:other", PullOptions{NoUnpack: true, Platforms: []string{"linux/s390x"}}, 4, false},
		{"a/b@" + both[0].Digest.String(), PullOptions{Name: "mine"}, 4, true},
	} {
		t.Run(fmt.Sprintf("%s %+v", tc.name, tc.o), func(t *testing.T) {
			got := map[string]int{}
			for range 2 { // the second time all is there
				made, err := w.Pull(bg, scope, open(tc.name), tc.o, func(p Progress) { got[p.Status]++ })
				if err != nil {
					t.Fatal(err)
				}
				w.collect()
				if n := len(w.content()); n != tc.blobs {
					t.Errorf("%d blobs, want %d", n, tc.blobs)
				}
				if (made.ChainID != "") != tc.chain {
					t.Errorf("chain %q", made.ChainID)
				}
				if tc.chain {
					snapshotter := "overlayfs"
					if len(tc.o.Unpack) > 0 {
						snapshotter = tc.o.Unpack[0].Snapshotter
					}
					w.look(snapshotter, made.ChainID.String(), func(root string) {
						wantFile(t, root+"/etc/new", "2")
						wantFile(t, root+"/etc/gone", "")
						wantFile(t, root+"/etc/arch", here.Architecture)
					})
				}
				image, err := w.db.Images(scope).Get(bg, made.Name)
				if err != nil || image.Target.Digest != made.Target.Digest.String() || len(image.Labels) != len(tc.o.Labels) {
					t.Errorf("%v, %v", image, err)
				}
				info, err := w.db.Blobs(scope).Info(bg, made.Target.Digest)
				if err != nil || info.Labels[labels.DistributionSource+host] != "a/b" {
					t.Errorf("%v, %v", info, err)
				}
			}
			if got[Downloaded] == 0 || got[Exists] == 0 || tc.chain != (got[Unpacked] > 0) {
				t.Errorf("told %v", got)
			}
			// What came from here can go to another repository without being sent.
			if tc.o.AllPlatforms {
				var how []string
				image, err := w.db.Images(scope).Get(bg, host+"/a/b:1")
				if err != nil {
					t.Fatal(err)
				}
				target := ocispec.Descriptor{MediaType: image.Target.MediaType, Digest: digest.Digest(image.Target.Digest), Size: image.Target.Size}
				_, err = w.Push(bg, scope, target, open("c/d:2"), PushOptions{AllPlatforms: true}, func(p Progress) {
					if p.Offset > 0 && p.Status == Uploading {
						how = append(how, p.Digest.String())
					}
				})
				if err != nil || how != nil {
					t.Errorf("sent %v, %v", how, err)
				}
			}
			name := tc.o.Name
			if name == "" {
				name = host + "/" + tc.name
			}
			w.drop(name)
		})
	}
	for name, want := range map[string]error{"a/b:none": errdefs.ErrNotFound, "none:1": errdefs.ErrNotFound} {
		if _, err := w.Pull(bg, scope, open(name), PullOptions{}, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.Pull(bg, scope, open("a/b:1"), PullOptions{Platforms: []string{"plan9/386"}}, nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/s390x") {
		t.Error(err)
	}
	w.empty()
}

// big makes an image of layers that take a while.
func big(t testing.TB, layers int) (*testimage.Layout, ocispec.Descriptor) {
	t.Helper()
	image := testimage.Image{Platform: here}
	for i := range layers {
		data := make([]byte, 1<<20)
		for j := range data {
			data[j] = byte(rand.Uint32())
		}
		image.Layers = append(image.Layers, layer(t, testimage.File{Name: "d/"}, testimage.File{Name: fmt.Sprintf("d/f%d", i), Body: string(data)}))
	}
	l := layout(t, testimage.Gzip)
	d, err := l.Add(testimage.Gzip, image)
	if err != nil {
		t.Fatal(err)
	}
	return l, d
}

// TestPullAtOnce: what many ask for is fetched once and unpacked once.
func TestPullAtOnce(t *testing.T) {
	w := newWorld(t)
	l, d := big(t, 5)
	s := shelve(t, l, d)
	var pulls sync.WaitGroup
	for i := range 8 {
		pulls.Go(func() {
			ns := metadata.Scope{Namespace: scope.Namespace}
			if i%4 == 3 {
				ns.Namespace = "elsewhere"
			}
			made, err := w.Pull(bg, ns, s, PullOptions{Name: fmt.Sprint("name", i)}, nil)
			if err != nil || made.ChainID == "" {
				t.Error(made, err)
			}
		})
	}
	pulls.Wait()
	for d := range l.Blobs {
		if got := s.offsets(d); d != s.target.Digest && len(got) != 1 {
			t.Errorf("%s was fetched %d times", d, len(got))
		}
	}
	if n := len(w.snapshots("overlayfs")); n != 5 {
		t.Errorf("%d snapshots", n)
	}
	w.collect()
	if n := len(w.snapshots("overlayfs")); n != 5 {
		t.Errorf("%d snapshots after a collection", n)
	}
}

// TestPullCutOff: what came before the way to the registry failed is there for the
// next pull, and only that is fetched which is missing.
func TestPullCutOff(t *testing.T) {
	w := newWorld(t)
	l, d := big(t, 3)
	s := shelve(t, l, d)
	const least = 100 << 10
	s.wrap = func(d ocispec.Descriptor, offset int64, r io.Reader) (io.Reader, error) {
		if d.Size < least || offset > 0 {
			return r, nil
		}
		return io.MultiReader(io.LimitReader(r, d.Size*2/3), &failing{fmt.Errorf("the line is cut: %w", errdefs.ErrUnavailable)}), nil
	}
	for range 3 { // each gets no further than the one before
		_, err := w.Pull(bg, scope, s, PullOptions{}, nil)
		if err == nil {
			break
		}
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "the line is cut") {
			t.Fatal(err)
		}
		w.collect()
		if names := w.names(); names != "" {
			t.Fatalf("named %s", names)
		}
	}
	if _, err := w.Pull(bg, scope, s, PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	for dgst, data := range l.Blobs {
		offsets := s.offsets(dgst)
		if len(data) < least {
			continue // it may have been cut off at any moment, by a layer that failed
		}
		// A fetch that was cut off because another failed may have got to any byte. Each
		// goes on where the one before ended.
		again := slices.DeleteFunc(slices.Clone(offsets), func(at int64) bool { return at == 0 })
		if len(again) == 0 || !slices.IsSorted(again) || again[0] > int64(len(data))*2/3 || !slices.IsSorted(offsets) {
			t.Errorf("%s of %d bytes was fetched from %v", dgst, len(data), offsets)
		}
	}
	w.drop("registry.test/a/b:1")
}

// failing is a reader that fails.
type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// TestPullLies: a registry that sends something else is found out, and nothing of it
// stays.
func TestPullLies(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(l *testimage.Layout, d ocispec.Descriptor)
		wrap   func(d ocispec.Descriptor, offset int64, r io.Reader) (io.Reader, error)
		want   error
		text   string
		kept   int // leases, which keep what came for the next attempt
	}{
		"other bytes": {
			wrap: func(d ocispec.Descriptor, _ int64, r io.Reader) (io.Reader, error) {
				data, err := io.ReadAll(r)
				if len(data) > 100<<10 {
					data[len(data)/2] ^= 1
				}
				return bytes.NewReader(data), err
			},
			text: "",
		},
		"less": {
			wrap: func(d ocispec.Descriptor, _ int64, r io.Reader) (io.Reader, error) {
				return io.LimitReader(r, d.Size-1), nil
			},
			want: errdefs.ErrUnavailable, text: "bytes came", kept: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			l, d := big(t, 3)
			s := shelve(t, l, d)
			s.wrap = tc.wrap
			_, err := w.Pull(bg, scope, s, PullOptions{}, nil)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v", err)
			}
			if names := w.names(); names != "" {
				t.Errorf("named %s", names)
			}
			leases, err := w.db.Leases(scope).List(bg)
			if err != nil || len(leases) != tc.kept {
				t.Fatalf("leases: %v, %v", leases, err)
			}
			for _, l := range leases {
				if err := w.db.Leases(scope).Delete(bg, l.Id); err != nil {
					t.Fatal(err)
				}
			}
			w.collect()
			w.empty()
		})
	}
}

// away is a registry that can't be reached.
type away struct{ *shelf }

func (away) Get(context.Context) (ocispec.Descriptor, []byte, error) {
	return ocispec.Descriptor{}, nil, errdefs.ErrUnavailable
}

// TestPullUnreachable: whoever tries again and again leaves nothing behind.
func TestPullUnreachable(t *testing.T) {
	w := newWorld(t)
	l, d := big(t, 1)
	if _, err := w.Pull(bg, scope, away{shelve(t, l, d)}, PullOptions{}, nil); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	w.empty()
}

// TestPullRefused: an image that is not to be had is not fetched.
func TestPullRefused(t *testing.T) {
	w := newWorld(t)
	l, d := big(t, 1)
	s := shelve(t, l, d)
	w.Verify = func(_ context.Context, name string, target ocispec.Descriptor) error {
		if name != "registry.test/a/b:1" || target.Digest != d.Digest {
			t.Errorf("asked for %s, %s", name, target.Digest)
		}
		return fmt.Errorf("not signed: %w", errdefs.ErrPermissionDenied)
	}
	if _, err := w.Pull(bg, scope, s, PullOptions{}, nil); !errdefs.IsPermissionDenied(err) {
		t.Error(err)
	}
	if len(s.asked) != 0 {
		t.Errorf("fetched %v", s.asked)
	}
	w.empty()
}

// TestPullCancelled ends in bounded time, whatever the registry does.
func TestPullCancelled(t *testing.T) {
	w := newWorld(t)
	l, d := big(t, 3)
	s := shelve(t, l, d)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := make(chan struct{})
	var once sync.Once
	s.wrap = func(d ocispec.Descriptor, _ int64, r io.Reader) (io.Reader, error) {
		if d.Size < 100<<10 {
			return r, nil
		}
		return io.MultiReader(io.LimitReader(r, d.Size/2), blocking{ctx, func() { once.Do(func() { close(began) }) }}), nil
	}
	ended := make(chan error)
	pulling, stop := context.WithCancel(ctx)
	go func() {
		_, err := w.Pull(pulling, scope, s, PullOptions{}, nil)
		ended <- err
	}()
	<-began
	stop()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// blocking is a reader that ends with its context.
type blocking struct {
	ctx  context.Context
	tell func()
}

func (b blocking) Read([]byte) (int, error) {
	b.tell()
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

// TestFollowerOfDroppedBytes: bytes that are dropped while they are read, as a flush
// of them has failed, are no end: the fetch has the word.
func TestFollowerOfDroppedBytes(t *testing.T) {
	lost := errors.New("the disk is bad")
	for name, end := range map[string]func(a *arrival){
		"failed": func(a *arrival) { a.end(nil, lost) },
		"again":  func(a *arrival) { a.end(func() (content.Reader, error) { return held("whole again"), nil }, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newArrival()
			a.begin(held("whol"))
			a.reach(8) // of which four are gone
			f := a.follow(t.Context())
			read := make(chan error)
			var got []byte
			go func() {
				var err error
				got, err = io.ReadAll(f)
				read <- err
			}()
			end(a)
			err := <-read
			if name == "failed" && !errors.Is(err, lost) || name == "again" && (err != nil || string(got) != "whole again") {
				t.Errorf("%q, %v", got, err)
			}
			if err := errors.Join(f.Close(), a.close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// held is a reader of a text.
type held string

func (h held) ReadAt(p []byte, off int64) (int, error) {
	return strings.NewReader(string(h)).ReadAt(p, off)
}
func (h held) Size() int64  { return int64(len(h)) }
func (h held) Close() error { return nil }
