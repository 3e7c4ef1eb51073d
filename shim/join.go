package shim

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	api "github.com/berthd/berth/api/berth/shim/v1"
	"github.com/berthd/berth/internal/names"
)

// groupService is what a shim is asked by who starts shims for the others of its
// group.
const groupService = "berth.shim.v1.Group"

// Bounds of the containers that are announced.
const (
	joinTime   = 30 * time.Second // from a Join to the Create
	maxJoining = 1024
)

// Join announces a container: until its Create, or for joinTime, the shim does not
// leave. Whoever starts a shim tells the daemon where the group's shim is, and the
// daemon connects and creates; meanwhile the last container of the group may be
// deleted, and Shutdown be called.
func (s *Shim) Join(_ context.Context, r *api.JoinRequest) (*api.JoinResponse, error) {
	id := r.GetId()
	if err := names.Identifier(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.leaving:
		return nil, fmt.Errorf("task %q: shim is shutting down: %w", id, errdefs.ErrUnavailable)
	case len(s.joining) >= maxJoining:
		return nil, fmt.Errorf("task %q: %d others were announced and not created: %w", id, len(s.joining), errdefs.ErrUnavailable)
	}
	s.joined(id) // it is announced again
	if s.joining == nil {
		s.joining = map[string]*time.Timer{}
	}
	s.joining[id] = time.AfterFunc(joinTime, func() { s.forgo(id) })
	return &api.JoinResponse{}, nil
}

// joined ends the wait for a container. Callers hold mu.
func (s *Shim) joined(id string) {
	if timer := s.joining[id]; timer != nil {
		timer.Stop()
		delete(s.joining, id)
	}
}

// forgo waits for a container no more, and leaves if that was all that it stayed
// for.
func (s *Shim) forgo(id string) {
	s.mu.Lock()
	s.joined(id)
	leave := s.dismissed
	s.mu.Unlock()
	s.config.Log.Warn("a container that was announced was not created", "task", id)
	if leave {
		s.leave()
	}
}

// home is the bundle that the shim lives in: its working directory is there, and
// its log. That of a group has to move when that bundle goes.
type home struct {
	mu     sync.Mutex // held for the whole of a move, so that the last one counts
	bundle string     // "" while there is none
}

// comeHome makes a bundle the shim's home if it has none.
func (s *Shim) comeHome(bundle string) {
	if s.config.Moved == nil {
		return
	}
	s.home.mu.Lock()
	defer s.home.mu.Unlock()
	if s.home.bundle == "" {
		s.home.bundle = bundle
		s.config.Moved(bundle)
	}
}

// leaveHome has the shim move if a bundle that is given up is its home.
func (s *Shim) leaveHome(bundle string) {
	if s.config.Moved == nil {
		return
	}
	s.home.mu.Lock()
	defer s.home.mu.Unlock()
	if s.home.bundle != bundle {
		return
	}
	if s.home.bundle = s.otherBundle(bundle); s.home.bundle != "" {
		s.config.Moved(s.home.bundle)
	}
}

// otherBundle gives a bundle of this shim that is not the one; "" if there is none.
func (s *Shim) otherBundle(bundle string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sandbox != nil && s.sandbox.bundle != "" && s.sandbox.bundle != bundle {
		return s.sandbox.bundle
	}
	for _, c := range s.containers {
		if c.bundle != bundle {
			return c.bundle
		}
	}
	return ""
}
