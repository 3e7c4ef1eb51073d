package services

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/images"
	bytestreams "github.com/berthd/berth/internal/streams"
)

const (
	// echoBuffer is how many bytes are passed on at once.
	echoBuffer = bytestreams.MaxData
	// padding is how many zeros follow an archive. Readers are told that a
	// transfer is done by the answer to its call, and some look no further: what
	// they may have missed of the stream then is padding.
	padding = 2 * bytestreams.Window
	// skipTime and maxSkipped bound what is read after the end of an archive.
	skipTime   = 2 * time.Second
	maxSkipped = 4 << 20
)

// Media types of archives.
const (
	tarType   = "application/x-tar"
	tarOCI    = "application/vnd.oci.image.layout.v1+tar"
	tarDocker = "application/vnd.docker.image.v1+tar"
)

// archiveTypes are those that need not be asked for.
var archiveTypes = map[string]bool{"": true, tarType: true, "application/tar": true, tarOCI: true, tarDocker: true}

// importStream brings the images of an archive into the store.
func (c *transferCall) importStream(ctx context.Context, from *transfer.ImageImportStream, to *transfer.ImageStore) (err error) {
	st, err := c.take(ctx, from.GetStream())
	if err != nil {
		return err
	}
	defer func() { st.end(err) }()
	o, err := importOptions(from, to)
	if err != nil {
		return err
	}
	c.progress.phase("Importing")
	r := bytestreams.NewReader(st)
	made, err := c.images.Import(ctx, c.scope, r, o, c.progress.object)
	if err != nil {
		return err
	}
	skip(st, r)
	for _, one := range made {
		c.progress.image("saved", one.Name, one.Target)
	}
	c.progress.phase("Completed import")
	return nil
}

// skip reads what follows the end of an archive, so that who sends it comes to an end
// too.
func skip(st *stream, r io.Reader) {
	timer := time.AfterFunc(skipTime, func() { st.end(nil) })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, r, maxSkipped) // what comes of it is of no interest
}

// exportStream writes images of the store as an archive.
func (c *transferCall) exportStream(ctx context.Context, from *transfer.ImageStore, to *transfer.ImageExportStream) (err error) {
	st, err := c.take(ctx, to.GetStream())
	if err != nil {
		return err
	}
	defer func() { st.end(err) }()
	if !archiveTypes[to.GetMediaType()] {
		return fmt.Errorf("export as %.100q: archives are written as tar: %w", to.GetMediaType(), errdefs.ErrNotImplemented)
	}
	list, err := c.named(ctx, from)
	if err != nil {
		return err
	}
	c.progress.phase("Exporting")
	w := bytestreams.NewWriter(st)
	buffered := bufio.NewWriterSize(w, bytestreams.MaxData)
	err = c.images.Export(ctx, c.scope, list, buffered, images.ExportOptions{
		Platforms: platformsOf(to.GetPlatforms()), AllPlatforms: to.GetAllPlatforms(),
		NoDocker: to.GetSkipCompatibilityManifest(), NoForeign: to.GetSkipNonDistributable(),
	}, c.progress.object)
	if err == nil {
		_, err = buffered.Write(make([]byte, padding))
	}
	if err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		err = w.Settle()
	}
	if err != nil {
		return err
	}
	c.progress.phase("Completed export")
	return nil
}

// named lists the images that a client wants to have exported.
func (c *transferCall) named(ctx context.Context, from *transfer.ImageStore) ([]images.Named, error) {
	var names []string
	if from.GetName() != "" {
		names = append(names, from.GetName())
	}
	for _, ref := range from.GetExtraReferences() {
		if ref.GetIsPrefix() {
			return nil, fmt.Errorf("export of all images that begin with %.300q: name them one by one: %w", ref.GetName(), errdefs.ErrNotImplemented)
		}
		names = append(names, ref.GetName())
	}
	if len(names) == 0 {
		return nil, missing("image to export")
	}
	var list []images.Named
	for _, name := range names {
		target, err := c.find(ctx, name)
		if err != nil {
			return nil, err
		}
		list = append(list, images.Named{Name: name, Target: target})
	}
	return list, nil
}

// echo passes the bytes of one stream on to another, which tests of clients do.
func (c *transferCall) echo(ctx context.Context, from *transfer.ImageImportStream, to *transfer.ImageExportStream) (err error) {
	in, err := c.take(ctx, from.GetStream())
	if err != nil {
		return err
	}
	defer func() { in.end(err) }()
	out, err := c.take(ctx, to.GetStream())
	if err != nil {
		return err
	}
	defer func() { out.end(err) }()
	w := bytestreams.NewWriter(out)
	if _, err := io.CopyBuffer(w, bytestreams.NewReader(in), make([]byte, echoBuffer)); err != nil {
		return err
	}
	return w.Settle()
}
