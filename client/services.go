package client

import (
	berthimages "github.com/berthd/berth/api/berth/images/v1/imagesgrpc"
	"github.com/berthd/berth/api/berth/logs/v1/logsgrpc"
	"github.com/berthd/berth/api/berth/maintenance/v1/maintenancegrpc"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/api/services/diff/v1/diffgrpc"
	"github.com/berthd/berth/api/services/events/v1/eventsgrpc"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	"github.com/berthd/berth/api/services/introspection/v1/introspectiongrpc"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
	"github.com/berthd/berth/api/services/namespaces/v1/namespacesgrpc"
	"github.com/berthd/berth/api/services/sandbox/v1/sandboxgrpc"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/services/streaming/v1/streaminggrpc"
	"github.com/berthd/berth/api/services/tasks/v1/tasksgrpc"
	"github.com/berthd/berth/api/services/transfer/v1/transfergrpc"
	"github.com/berthd/berth/api/services/version/v1/versiongrpc"
)

// The services of the daemon, for what this package has no words of its own.

// Containers keeps the records of containers.
func (c *Client) Containers() containersgrpc.ContainersClient {
	return containersgrpc.NewContainersClient(c.calls)
}

// Content keeps blobs.
func (c *Client) Content() contentgrpc.ContentClient { return contentgrpc.NewContentClient(c.calls) }

// Diff applies layers to mounts.
func (c *Client) Diff() diffgrpc.DiffClient { return diffgrpc.NewDiffClient(c.calls) }

// Events tells what happens.
func (c *Client) Events() eventsgrpc.EventsClient { return eventsgrpc.NewEventsClient(c.calls) }

// Images keeps the names of images.
func (c *Client) Images() imagesgrpc.ImagesClient { return imagesgrpc.NewImagesClient(c.calls) }

// Introspection tells what the daemon is made of.
func (c *Client) Introspection() introspectiongrpc.IntrospectionClient {
	return introspectiongrpc.NewIntrospectionClient(c.calls)
}

// Leases keeps what nothing refers to yet.
func (c *Client) Leases() leasesgrpc.LeasesClient { return leasesgrpc.NewLeasesClient(c.calls) }

// Namespaces keeps the namespaces.
func (c *Client) Namespaces() namespacesgrpc.NamespacesClient {
	return namespacesgrpc.NewNamespacesClient(c.calls)
}

// SandboxController runs sandboxes.
func (c *Client) SandboxController() sandboxgrpc.ControllerClient {
	return sandboxgrpc.NewControllerClient(c.calls)
}

// Snapshots keeps layered directory trees.
func (c *Client) Snapshots() snapshotsgrpc.SnapshotsClient {
	return snapshotsgrpc.NewSnapshotsClient(c.calls)
}

// Streaming carries messages to and from what works for a client in the daemon.
func (c *Client) Streaming() streaminggrpc.StreamingClient {
	return streaminggrpc.NewStreamingClient(c.calls)
}

// Tasks runs processes.
func (c *Client) Tasks() tasksgrpc.TasksClient { return tasksgrpc.NewTasksClient(c.calls) }

// Transfers moves images between registries, the store and streams.
func (c *Client) Transfers() transfergrpc.TransferClient {
	return transfergrpc.NewTransferClient(c.calls)
}

// Version tells which daemon it is.
func (c *Client) Version() versiongrpc.VersionClient { return versiongrpc.NewVersionClient(c.calls) }

// Importer brings images in; berth's own service, unknown to other daemons.
func (c *Client) Importer() berthimages.ImagesClient { return berthimages.NewImagesClient(c.calls) }

// Logs keeps the output of detached containers; berth's own service.
func (c *Client) Logs() logsgrpc.LogsClient { return logsgrpc.NewLogsClient(c.calls) }

// Maintenance looks after the store; berth's own service.
func (c *Client) Maintenance() maintenancegrpc.MaintenanceClient {
	return maintenancegrpc.NewMaintenanceClient(c.calls)
}
