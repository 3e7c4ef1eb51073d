package services

import (
	"bufio"
	"context"
	"errors"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/metadata"
)

// storeBuffer is how much of a blob that is made here is written at once, in bytes.
const storeBuffer = 1 << 20

// storeBlob makes a blob under ref of what write writes; an ingest of that ref starts
// anew. That the blob is there already is no error. named gives its labels once all
// is written; they are added to a blob that was there. The caller's lease keeps it.
// After an error nothing is left.
func storeBlob(ctx context.Context, blobs *metadata.Blobs, ref string, write func(io.Writer) error, named func() map[string]string) (_ digest.Digest, size int64, err error) {
	w, err := blobs.Writer(ctx, ref, content.Expect{})
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, w.End(ctx, err == nil)) }()
	at, err := w.Status()
	if err == nil && at.GetOffset() > 0 {
		err = w.Truncate(0)
	}
	if err != nil {
		return "", 0, err
	}
	buffered := bufio.NewWriterSize(w, storeBuffer)
	if err := write(buffered); err != nil {
		return "", 0, err
	}
	if err := buffered.Flush(); err != nil {
		return "", 0, err
	}
	if at, err = w.Status(); err != nil {
		return "", 0, err
	}
	d, size := w.Digest(), at.GetOffset()
	var marks map[string]string
	if named != nil {
		marks = named()
	}
	err = w.Commit(ctx, size, d, marks)
	if errdefs.IsAlreadyExists(err) {
		err = addLabels(ctx, blobs, d, marks)
	}
	return d, size, err
}

// addLabels gives a blob those labels that it lacks.
func addLabels(ctx context.Context, blobs *metadata.Blobs, d digest.Digest, marks map[string]string) error {
	info, err := blobs.Info(ctx, d)
	if err != nil {
		return err
	}
	var mask []string
	for key, value := range marks {
		if info.GetLabels()[key] == "" && value != "" {
			if info.Labels == nil {
				info.Labels = map[string]string{}
			}
			info.Labels[key] = value
			mask = append(mask, "labels."+key)
		}
	}
	if len(mask) == 0 {
		return nil
	}
	_, err = blobs.Update(ctx, info, mask...)
	return err
}
