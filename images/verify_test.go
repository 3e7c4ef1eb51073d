package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/leak"
)

var verified = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 7}

// verifier puts a shell script among the verifiers.
func verifier(t *testing.T, v *Verifiers, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(v.Dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestVerifiers(t *testing.T) {
	leak.Check(t)
	var none *Verifiers
	for _, v := range []*Verifiers{none, {}, {Dir: filepath.Join(t.TempDir(), "none")}, {Dir: t.TempDir()}} {
		if err := v.Verify(t.Context(), "image", verified); err != nil {
			t.Errorf("nobody to ask: %v", err)
		}
	}
	v := &Verifiers{Dir: t.TempDir(), Timeout: 10 * time.Second}
	out := filepath.Join(t.TempDir(), "out")
	verifier(t, v, "a", "echo \"$@\" >"+out+"; cat >>"+out+"; env >"+out+".env")
	t.Setenv("SECRET", "x")
	if err := v.Verify(t.Context(), "reg/image:1", verified); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	want := fmt.Sprintf("-name reg/image:1 -digest %s -stdin-media-type application/vnd.oci.descriptor.v1+json\n"+
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":7}`, verified.Digest, verified.Digest)
	if err != nil || string(text) != want {
		t.Errorf("%q, %v\nwant %q", text, err, want)
	}
	if env, err := os.ReadFile(out + ".env"); err != nil || strings.Contains(string(env), "SECRET") {
		t.Errorf("%q, %v", env, err)
	}
	verifier(t, v, "b", "echo not signed; echo by us; echo debug >&2; exit 3")
	err = v.Verify(t.Context(), "reg/image:1", verified)
	if !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), `verifier b refuses it: not signed by us`) {
		t.Error(err)
	}
}

// TestVerifiersFail: a verifier that can't say yes has not said yes, and costs no
// more than its time.
func TestVerifiersFail(t *testing.T) {
	leak.Check(t)
	for name, c := range map[string]struct {
		script, want string
		mode         os.FileMode
		kind         error
	}{
		"hangs":          {"sleep 1000 & wait", "did not answer within", 0o755, errdefs.ErrFailedPrecondition},
		"endless":        {"cat /dev/zero", "did not answer within", 0o755, errdefs.ErrFailedPrecondition},
		"killed":         {"kill -9 $$", "signal: killed", 0o755, errdefs.ErrFailedPrecondition},
		"no program":     {"exit 0", "permission denied", 0o644, errdefs.ErrFailedPrecondition},
		"anybody's":      {"exit 0", "nobody else may write it", 0o777, errdefs.ErrFailedPrecondition},
		"much to say":    {"head -c 1000000 /dev/zero | tr '\\0' x; exit 1", "refuses it", 0o755, errdefs.ErrPermissionDenied},
		"garbage":        {"printf 'no\\033[31m \\377entry'; exit 1", "refuses it: no [31m entry: ", 0o755, errdefs.ErrPermissionDenied},
		"nothing to say": {"exit 1", "it gives no reason", 0o755, errdefs.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			v := &Verifiers{Dir: t.TempDir(), Timeout: 300 * time.Millisecond}
			verifier(t, v, "p", c.script)
			if err := os.Chmod(filepath.Join(v.Dir, "p"), c.mode); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			err := v.Verify(t.Context(), "image", verified)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 2*maxReason {
				t.Errorf("%v, want %q", err, c.want)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
	v := &Verifiers{Dir: t.TempDir(), Max: 2}
	for i := range 3 {
		verifier(t, v, fmt.Sprint(i), "exit 0")
	}
	if err := v.Verify(t.Context(), "image", verified); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "image_verifiers.max") {
		t.Error(err)
	}
	v = &Verifiers{Dir: t.TempDir()}
	verifier(t, v, "p", "sleep 1000 & wait")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := v.Verify(ctx, "image", verified); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
