package archive

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
)

// TarDir reads a directory, such as an OCI image layout, as a tar: its files
// and directories in lexical order, names relative to it. Symbolic links are
// kept as links; other special files are an error of Read. The caller closes
// the reader, at its end or before.
func TarDir(dir string) io.ReadCloser {
	r, w := io.Pipe()
	t := &tarDir{PipeReader: r, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		w.CloseWithError(writeDir(w, dir))
	}()
	return t
}

type tarDir struct {
	*io.PipeReader
	done chan struct{} // closed when nothing reads the directory any more
}

// Close stops reading the directory. The writing side has no error of its own
// to tell then.
func (t *tarDir) Close() error {
	err := t.PipeReader.Close()
	<-t.done
	return err
}

func writeDir(w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", dir, err)
	}
	buffered := bufio.NewWriterSize(w, bufferSize)
	tw := tar.NewWriter(buffered)
	err = tw.AddFS(root.FS())
	if err == nil {
		err = tw.Close()
	}
	if err == nil {
		err = buffered.Flush()
	}
	if err = errors.Join(err, root.Close()); err != nil {
		return fmt.Errorf("read directory %q: %w", dir, err)
	}
	return nil
}
