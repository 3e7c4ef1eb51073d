package client

import (
	"context"
	"fmt"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/protobuf"
)

// CheckpointOptions say how a container's processes are written down. Each of the
// latter three is of something that criu refuses unless it is told to try.
type CheckpointOptions struct {
	LeaveRunning bool // let them run on; otherwise they end
	OpenTCP      bool // established connections
	FileLocks    bool // locks on files
	UnixSockets  bool // sockets whose other side is outside of the container
	Terminal     bool // a terminal
}

// Checkpoint has criu write the processes of a container down, and gives the blobs
// with their images and with the container's spec. Call it under a lease: nothing
// else keeps the blobs yet. The daemon says what refuses it: the runtime, criu or
// the kernel.
func (c *Client) Checkpoint(ctx context.Context, container string, o CheckpointOptions) (images, spec *types.Descriptor, err error) {
	options, err := protobuf.MarshalAny(&runc.CheckpointOptions{
		Exit: !o.LeaveRunning, OpenTcp: o.OpenTCP, FileLocks: o.FileLocks, ExternalUnixSockets: o.UnixSockets, Terminal: o.Terminal,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("encode checkpoint options: %w", err)
	}
	answer, err := c.Tasks().Checkpoint(ctx, &tasks.CheckpointTaskRequest{ContainerId: container, Options: options})
	if err != nil {
		return nil, nil, err
	}
	made := answer.GetDescriptors()
	if len(made) != 2 {
		return nil, nil, fmt.Errorf("checkpoint of container %q: the daemon answered with %d blobs, and not with 2", container, len(made))
	}
	return made[0], made[1], nil
}
