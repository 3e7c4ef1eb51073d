package restart

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/events"
)

// Store has the records of containers. Its errors are errdefs kinds.
type Store interface {
	// Labelled gives every container, of any namespace, that has the label.
	Labelled(ctx context.Context, label string) ([]Container, error)
	Get(ctx context.Context, namespace, id string) (*containers.Container, error)
	// SetLabels sets labels; an empty value takes one away.
	SetLabels(ctx context.Context, namespace, id string, set map[string]string) error
	// Rootfs gives the mounts of a container's root file system.
	Rootfs(ctx context.Context, namespace string, c *containers.Container) ([]*types.Mount, error)
}

// Container names one.
type Container struct{ Namespace, ID string }

// Tasks runs them: *runtime.Tasks.
type Tasks interface {
	// Known gives what is known of a task without asking anybody; nil if there
	// is none.
	Known(namespace, id string) *apitask.Process
	Create(ctx context.Context, namespace string, c *containers.Container, r *tasks.CreateTaskRequest) (*tasks.CreateTaskResponse, error)
	Start(ctx context.Context, namespace string, r *tasks.StartRequest) (*tasks.StartResponse, error)
	Kill(ctx context.Context, namespace string, r *tasks.KillRequest) error
	Wait(ctx context.Context, namespace string, r *tasks.WaitRequest) (*tasks.WaitResponse, error)
	Delete(ctx context.Context, namespace string, r *tasks.DeleteTaskRequest) (*tasks.DeleteResponse, error)
}

// Engine keeps containers as their labels say. Store, Tasks and Journal are
// required; zero durations mean their defaults.
type Engine struct {
	Store   Store
	Tasks   Tasks
	Journal *events.Journal
	Log     *slog.Logger

	Every  time.Duration // between looks at a container to which nothing happens: 10 seconds
	First  time.Duration // the pause before the first restart, which doubles with each: 100 milliseconds
	Most   time.Duration // the longest pause: 1 minute
	Steady time.Duration // how long a container has to run for the next pause to be the first again: 10 seconds
	Grace  time.Duration // that a container has to end after it was asked to: 10 seconds

	mu      sync.Mutex // guards what follows
	keepers map[Container]*keeper
	wg      sync.WaitGroup
}

// rescan is how often the records of all containers are looked through, beside
// the news of each.
const rescan = 5 * time.Minute

func (e *Engine) setDefaults() {
	if e.Log == nil {
		e.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&e.Every, 10 * time.Second}, {&e.First, 100 * time.Millisecond}, {&e.Most, time.Minute},
		{&e.Steady, 10 * time.Second}, {&e.Grace, 10 * time.Second},
	} {
		*d.field = cmp.Or(*d.field, d.value)
	}
}

// Run keeps containers until ctx ends. They run on then.
func (e *Engine) Run(ctx context.Context) error {
	e.setDefaults()
	e.mu.Lock()
	e.keepers = map[Container]*keeper{}
	e.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer e.wg.Wait()
	defer cancel()
	for ctx.Err() == nil {
		news, err := e.Journal.Subscribe([]string{
			`topic=="/tasks/exit"`, `topic=="/tasks/delete"`, `topic~="^/containers/"`,
		}, 0)
		if err != nil {
			return err
		}
		err = e.follow(ctx, news)
		news.Close()
		if err != nil && ctx.Err() == nil {
			e.Log.Warn("events missed; every container is looked at", "error", err)
		}
	}
	return nil
}

// follow looks at all containers, and then at those of which there are news.
func (e *Engine) follow(ctx context.Context, news *events.Subscription) error {
	scan := time.NewTimer(0)
	defer scan.Stop()
	envelopes := make(chan *types.Envelope)
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.wg.Go(func() {
		for {
			envelope, _, err := news.Next(ctx)
			if err != nil {
				failed <- err
				return
			}
			select {
			case envelopes <- envelope:
			case <-ctx.Done():
				failed <- ctx.Err()
				return
			}
		}
	})
	for {
		select {
		case <-ctx.Done():
			<-failed // the goroutine above has ended
			return nil
		case err := <-failed:
			return err
		case envelope := <-envelopes:
			e.heard(ctx, envelope)
		case <-scan.C:
			e.scan(ctx)
			scan.Reset(rescan)
		}
	}
}

// scan sees to it that every container with our labels has a keeper.
func (e *Engine) scan(ctx context.Context) {
	all, err := e.Store.Labelled(ctx, statusLabel)
	if err != nil {
		e.Log.Error("containers with restart policies not found", "error", err)
		return
	}
	for _, c := range all {
		e.wake(ctx, c, false)
	}
}

// heard acts on an event.
func (e *Engine) heard(ctx context.Context, envelope *types.Envelope) {
	value := envelope.GetEvent().GetValue()
	ns := envelope.GetNamespace()
	switch envelope.GetTopic() {
	case "/tasks/exit":
		var exit apievents.TaskExit
		if proto.Unmarshal(value, &exit) == nil && exit.GetId() == exit.GetContainerId() {
			e.news(ctx, Container{ns, exit.GetContainerId()}, true)
		}
	case "/tasks/delete":
		var del apievents.TaskDelete
		if proto.Unmarshal(value, &del) == nil {
			e.news(ctx, Container{ns, del.GetContainerId()}, false)
		}
	case "/containers/create":
		var made apievents.ContainerCreate
		if proto.Unmarshal(value, &made) == nil {
			e.labelled(ctx, Container{ns, made.GetId()})
		}
	case "/containers/update":
		var changed apievents.ContainerUpdate
		if proto.Unmarshal(value, &changed) == nil {
			e.labelled(ctx, Container{ns, changed.GetId()})
		}
	case "/containers/delete":
		var gone apievents.ContainerDelete
		if proto.Unmarshal(value, &gone) == nil {
			e.news(ctx, Container{ns, gone.GetId()}, false)
		}
	}
}

// labelled is for a container whose record was made or changed.
func (e *Engine) labelled(ctx context.Context, c Container) {
	record, err := e.Store.Get(ctx, c.Namespace, c.ID)
	if err == nil && record.GetLabels()[statusLabel] != "" {
		e.wake(ctx, c, false)
		return
	}
	e.news(ctx, c, false)
}

// news wakes the keeper of a container, if it has one.
func (e *Engine) news(ctx context.Context, c Container, ended bool) {
	e.mu.Lock()
	known := e.keepers[c] != nil
	e.mu.Unlock()
	if known {
		e.wake(ctx, c, ended)
	}
}

// wake has the keeper of a container look at it now. There is one afterwards.
func (e *Engine) wake(ctx context.Context, c Container, ended bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	k := e.keepers[c]
	if k == nil {
		k = &keeper{engine: e, Container: c, kick: make(chan struct{}, 1)}
		e.keepers[c] = k
		e.wg.Go(func() { k.run(ctx) })
	}
	k.ended = k.ended || ended
	select {
	case k.kick <- struct{}{}:
	default: // it is going to look anyway
	}
}

// Failure is a container that is to run and can't be made to.
type Failure struct {
	Container
	Err   error
	Since time.Time // of the first try that failed
	Next  time.Time // try
}

// Failures lists the containers that can't be kept as their labels say, in order
// of namespace and id.
func (e *Engine) Failures() []Failure {
	e.mu.Lock()
	defer e.mu.Unlock()
	var failed []Failure
	for c, k := range e.keepers {
		if k.failure != nil {
			failed = append(failed, Failure{c, k.failure, k.since, k.next})
		}
	}
	slices.SortFunc(failed, func(a, b Failure) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID))
	})
	return failed
}

// errGone says that a container has no record any more, or none of our labels.
var errGone = errors.New("not to be kept any more")
