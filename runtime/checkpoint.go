package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	apievents "github.com/berthd/berth/api/events"
	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/internal/names"
)

// Media types of what a checkpoint leaves in the content store.
const (
	mediaTypeImages = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
	mediaTypeConfig = "application/vnd.containerd.container.checkpoint.config.v1+proto"
)

const (
	checkpointOptionsType = "containerd.runc.v1.CheckpointOptions"
	topicCheckpointed     = "/tasks/checkpointed"
	// restoreAnnotation on the descriptor of a Create's checkpoint is the directory
	// with its images, instead of a blob; the task is started at once.
	restoreAnnotation = "RestoreFromPath"
)

// Blobs is where checkpoints are kept: the content of the caller's namespace, under
// the caller's lease. Put stores what write writes, unless that fails, and gives its
// descriptor; that it is there already is no error. Open gives what a descriptor
// names: NotFound.
type Blobs interface {
	Put(ctx context.Context, mediaType string, write func(io.Writer) error) (*types.Descriptor, error)
	Open(ctx context.Context, d *types.Descriptor) (io.ReadCloser, error)
}

// checkpointsDir is the directory below Root with criu's images while they are on
// their way from or to the content store: of a task that waits for its restore as
// NAMESPACE/ID, of a dump as NAMESPACE/.dump-ID-*. They are on disk since they are as
// large as the memory of the container.
const (
	checkpointsDir = "checkpoints"
	dumpPrefix     = ".dump-"
)

// imagesDir is where the images are of which a task is restored.
func (t *Tasks) imagesDir(ns, id string) string {
	return filepath.Join(t.cfg.Root, checkpointsDir, ns, id)
}

// Checkpoint dumps the processes of a task: to the directory that the options
// name, and then the answer is empty, or into the content store.
func (t *Tasks) Checkpoint(ctx context.Context, ns string, c *containers.Container, r *tasks.CheckpointTaskRequest, blobs Blobs) (*tasks.CheckpointTaskResponse, error) {
	id := r.GetContainerId()
	if _, err := t.lookup(ns, id); err != nil {
		return nil, err
	}
	o, err := checkpointOptions(r)
	if err != nil {
		return nil, fmt.Errorf("checkpoint task %q: %w", id, err)
	}
	if path := o.GetImagePath(); path != "" {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("checkpoint task %q: image path %q is not absolute: %w", id, path, errdefs.ErrInvalidArgument)
		}
		if err := t.dump(ctx, ns, r, path); err != nil {
			return nil, err
		}
		t.checkpointed(ctx, ns, id, path)
		return &tasks.CheckpointTaskResponse{}, nil
	}
	if err := t.begin(); err != nil {
		return nil, err
	}
	defer t.wg.Done()
	dir, err := t.dumpDir(ns, id)
	if err != nil {
		return nil, fmt.Errorf("checkpoint task %q: %w", id, err)
	}
	defer func() {
		if err := removeTree(dir); err != nil {
			t.cfg.Log.Warn("images of a checkpoint not removed; the next start tries again", "path", dir, "error", err)
		}
	}()
	if err := t.dump(ctx, ns, r, dir); err != nil {
		return nil, err
	}
	images, err := blobs.Put(ctx, mediaTypeImages, func(w io.Writer) error { return packImages(ctx, dir, w) })
	if err != nil {
		return nil, fmt.Errorf("store checkpoint of task %q: %w", id, err)
	}
	config, err := blobs.Put(ctx, mediaTypeConfig, func(w io.Writer) error {
		data, err := proto.Marshal(c.GetSpec())
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store spec with the checkpoint of task %q: %w", id, err)
	}
	t.checkpointed(ctx, ns, id, images.GetDigest())
	return &tasks.CheckpointTaskResponse{Descriptors: []*types.Descriptor{images, config}}, nil
}

// checkpointOptions reads the options of a Checkpoint. They may be missing.
func checkpointOptions(r *tasks.CheckpointTaskRequest) (*runc.CheckpointOptions, error) {
	o := &runc.CheckpointOptions{}
	packed := r.GetOptions()
	if len(packed.GetValue()) == 0 {
		return o, nil
	}
	if _, name, _ := cutLast(packed.GetTypeUrl(), "/"); name != checkpointOptionsType {
		return nil, fmt.Errorf("options of type %q: this runtime takes %s", name, checkpointOptionsType)
	}
	if err := proto.Unmarshal(packed.GetValue(), o); err != nil {
		return nil, fmt.Errorf("options: not a %s: %w", checkpointOptionsType, err)
	}
	return o, nil
}

// dump has the shim write the images to a directory.
func (t *Tasks) dump(ctx context.Context, ns string, r *tasks.CheckpointTaskRequest, dir string) error {
	_, err := t.with(ctx, ns, r.GetContainerId(), "checkpoint", func(k *task, c *conn) error {
		_, err := call(ctx, c, "checkpoint the task", t.cfg.Deadlines.Checkpoint,
			func(ctx context.Context, r *shimtask.CheckpointTaskRequest) (*emptypb.Empty, error) {
				return c.shim.Checkpoint(ctx, r)
			},
			&shimtask.CheckpointTaskRequest{Id: k.id, Path: dir, Options: r.GetOptions()})
		return err
	})
	return err
}

// dumpDir makes a directory for a dump that goes into the content store.
func (t *Tasks) dumpDir(ns, id string) (string, error) {
	parent := filepath.Dir(t.imagesDir(ns, id))
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", err
	}
	return os.MkdirTemp(parent, dumpPrefix+id+"-")
}

// checkpointed publishes that a checkpoint was made, after all else has succeeded.
func (t *Tasks) checkpointed(ctx context.Context, ns, id, where string) {
	t.cfg.Log.Info("task checkpointed", "namespace", ns, "id", id, "checkpoint", where)
	t.cfg.Publish(context.WithoutCancel(ctx), ns, topicCheckpointed, &apievents.TaskCheckpointed{ContainerId: id, Checkpoint: where})
}

// CreateFrom is Create for a request that may name a checkpoint: the task then has
// no process until its Start restores it.
func (t *Tasks) CreateFrom(ctx context.Context, ns string, c *containers.Container, r *tasks.CreateTaskRequest, blobs Blobs) (*tasks.CreateTaskResponse, error) {
	reply, err := t.createTask(ctx, ns, c, r, blobs)
	if err != nil || r.GetCheckpoint().GetAnnotations()[restoreAnnotation] == "" {
		return reply, err
	}
	started, err := t.Start(ctx, ns, &tasks.StartRequest{ContainerId: r.GetContainerId()})
	if err == nil {
		return &tasks.CreateTaskResponse{ContainerId: reply.GetContainerId(), Pid: started.GetPid()}, nil
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.cfg.Deadlines.Delete)
	defer cancel()
	if _, derr := t.Delete(late, ns, &tasks.DeleteTaskRequest{ContainerId: r.GetContainerId()}); derr != nil && !errdefs.IsNotFound(derr) {
		err = fmt.Errorf("%w; and undoing it: %v", err, derr)
	}
	return nil, err
}

// checkpointOf finds out of which checkpoint a Create wants the task: a directory,
// or a blob, which is unpacked once the bundle is there.
func checkpointOf(r *tasks.CreateTaskRequest, o *runc.Options) (dir string, blob *types.Descriptor, err error) {
	d := r.GetCheckpoint()
	dir = d.GetAnnotations()[restoreAnnotation]
	if dir == "" {
		dir = o.GetCriuImagePath()
	}
	switch {
	case dir != "" && !filepath.IsAbs(dir):
		return "", nil, fmt.Errorf("checkpoint %q is not an absolute path: %w", dir, errdefs.ErrInvalidArgument)
	case dir != "":
		return dir, nil, nil
	case d == nil:
		return "", nil, nil
	case d.GetMediaType() != mediaTypeImages:
		return "", nil, fmt.Errorf("checkpoint of type %q: it has to be %s: %w", d.GetMediaType(), mediaTypeImages, errdefs.ErrInvalidArgument)
	}
	return "", d, nil
}

// unpack brings the checkpoint of a plan from the content store to where the shim
// finds it.
func (t *Tasks) unpack(ctx context.Context, k *task, p *plan) error {
	if p.checkpoint == nil {
		return nil
	}
	if p.blobs == nil {
		return fmt.Errorf("restoring from a blob without a content store: %w", errdefs.ErrNotImplemented)
	}
	in, err := p.blobs.Open(ctx, p.checkpoint)
	if err != nil {
		return fmt.Errorf("open checkpoint: %w", err)
	}
	defer in.Close()
	dir := t.imagesDir(k.ns, k.id)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := removeTree(dir); err != nil { // what a daemon has left that was killed
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unpackImages(ctx, in, p.checkpoint.GetSize(), dir); err != nil {
		return fmt.Errorf("unpack checkpoint %s: %w", p.checkpoint.GetDigest(), err)
	}
	return nil
}

// clearImages removes the unpacked checkpoint of a task, if it has one.
func (t *Tasks) clearImages(k *task) error {
	if dir := t.imagesDir(k.ns, k.id); k.view().intent.Checkpoint == dir {
		return removeTree(dir)
	}
	return nil
}

// restored takes over the process of a task from a checkpoint, which its Start has
// restored.
func (t *Tasks) restored(k *task, pid int) {
	if k.view().intent.Checkpoint == "" {
		return
	}
	var err error
	if k.foreign() {
		err = t.recordInit(k, pid)
	}
	if err == nil {
		err = k.takeInit()
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) { // deleted meanwhile
		t.cfg.Log.Warn("no handle on a restored process: its status is lost if the shim and it end at once",
			"namespace", k.ns, "id", k.id, "error", err)
	}
	// The images have been read.
	if err := t.clearImages(k); err != nil {
		t.cfg.Log.Warn("images of a restored task stay until it is deleted", "namespace", k.ns, "id", k.id, "error", err)
	}
}

// sweepImages removes what dumps have left that were cut off, and the images of
// tasks that are gone.
func (t *Tasks) sweepImages() {
	base := filepath.Join(t.cfg.Root, checkpointsDir)
	spaces, err := os.ReadDir(base)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	for _, space := range spaces {
		entries, rerr := os.ReadDir(filepath.Join(base, space.Name()))
		err = errors.Join(err, rerr)
		for _, e := range entries {
			isDump := strings.HasPrefix(e.Name(), dumpPrefix)
			if !isDump && (names.Identifier(e.Name()) != nil || t.find(space.Name(), e.Name()) != nil) {
				continue
			}
			err = errors.Join(err, removeTree(filepath.Join(base, space.Name(), e.Name())))
		}
	}
	if err != nil {
		t.cfg.Log.Warn("images of checkpoints not removed; the next start tries again", "path", base, "error", err)
	}
}
