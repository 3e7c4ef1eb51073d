package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/internal/program"
)

const (
	// Bounds of Verifiers where it has no others.
	defaultMaxVerifiers    = 10
	defaultVerifierTimeout = 10 * time.Second
	// atOnce is how many verifiers run at the same time.
	atOnce = 4
	// maxReason is how many bytes of a verifier's judgement are kept.
	maxReason = 4 << 10
)

// Verifiers are the programs that have to agree before an image is named: all
// files of a directory that whoever runs the machine fills. The zero value has
// none.
//
// Each is called with -name NAME -digest DIGEST -stdin-media-type TYPE, and the
// image's descriptor as JSON on standard input. Exit code 0 allows the image; any
// other refuses it, for the reason on standard output. A program that can't be
// run, or does not end in time, is no agreement either.
type Verifiers struct {
	Dir     string        // "", or not there: no verifiers
	Max     int           // with more programs than that nothing is allowed; 0: 10
	Timeout time.Duration // for each; 0: 10 seconds
	Log     *slog.Logger  // nil: none
}

// Verify asks all of them whether name may stand for target. PermissionDenied:
// one refuses it. FailedPrecondition: the directory or a program in it is not as
// it has to be, or has failed.
func (v *Verifiers) Verify(ctx context.Context, name string, target ocispec.Descriptor) error {
	programs, err := v.programs()
	if err != nil {
		return fmt.Errorf("verify image %q: %w", name, err)
	}
	if len(programs) == 0 {
		return nil
	}
	about, err := json.Marshal(target)
	if err != nil {
		return fmt.Errorf("verify image %q: %w", name, err)
	}
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(atOnce)
	for _, path := range programs {
		all.Go(func() error {
			if err := v.ask(ctx, path, name, target, about); err != nil {
				return fmt.Errorf("verify image %q (%s): %w", name, target.Digest, err)
			}
			return nil
		})
	}
	return all.Wait()
}

// programs lists the verifiers, in the order of their names.
func (v *Verifiers) programs() ([]string, error) {
	if v == nil || v.Dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(v.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image verifiers: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	limit := v.Max
	if limit <= 0 {
		limit = defaultMaxVerifiers
	}
	if len(entries) > limit {
		return nil, fmt.Errorf("there are %d image verifiers in %s, more than the %d of the configuration (image_verifiers.max): %w",
			len(entries), v.Dir, limit, errdefs.ErrFailedPrecondition)
	}
	if err := program.Trusted(v.Dir); err != nil {
		return nil, fmt.Errorf("image verifiers: %w", err)
	}
	var all []string
	for _, entry := range entries {
		path := filepath.Join(v.Dir, entry.Name())
		if err := program.Trusted(path); err != nil {
			return nil, fmt.Errorf("image verifier: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		all = append(all, path)
	}
	return all, nil
}

// ask asks one verifier.
func (v *Verifiers) ask(ctx context.Context, path, name string, target ocispec.Descriptor, about []byte) error {
	limit := v.Timeout
	if limit <= 0 {
		limit = defaultVerifierTimeout
	}
	bounded, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not answer within %s", limit))
	defer cancel()
	cmd, words := program.Command(bounded, path, []string{
		"-name", name, "-digest", target.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor,
	}, nil)
	cmd.Stdin = bytes.NewReader(about)
	reason := &head{}
	cmd.Stdout = reason
	err := cmd.Run()
	v.log().Debug("image verifier answered", slog.String("verifier", path), slog.String("image", name),
		slog.Any("error", err), slog.String("reason", reason.String()), slog.String("stderr", words.String()))
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil: // the caller gave up, or another one has refused
		return ctx.Err()
	case bounded.Err() == nil && cmd.ProcessState != nil && cmd.ProcessState.Exited():
		return fmt.Errorf("verifier %s refuses it: %s: %w", filepath.Base(path), said(reason.String()), errdefs.ErrPermissionDenied)
	}
	return fmt.Errorf("image verifier: %w: %w", program.Failed(bounded, path, err, words), errdefs.ErrFailedPrecondition)
}

func (v *Verifiers) log() *slog.Logger {
	if v.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return v.Log
}

// said is a judgement in one line, without what a terminal would take for more than
// text.
func said(reason string) string {
	words := strings.FieldsFunc(reason, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || r == unicode.ReplacementChar
	})
	if len(words) == 0 {
		return "it gives no reason"
	}
	return strings.Join(words, " ")
}

// head keeps the beginning of what is written.
type head struct{ kept bytes.Buffer }

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.kept.Write(p[:min(len(p), maxReason-h.kept.Len())])
	return len(p), nil
}

// String gives what is kept.
func (h *head) String() string { return h.kept.String() }
