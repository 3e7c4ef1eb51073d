package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	shimbox "github.com/berthd/berth/api/runtime/sandbox/v1"
	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/cgroup"
)

// A shim that let a call's deadline pass is silent until it answers the next
// one. Calls about its own container go on being made; those about many leave it
// out at once instead of waiting for it each time, and have it asked in the
// background whether it is there again.

// answers tells whether a connection's shim is worth asking together with
// others.
func (t *Tasks) answers(k *task, c *conn) bool {
	if c.silent.Load() == 0 {
		return true
	}
	t.poke(k, c)
	return false
}

// poke asks a task's shim for a sign of life, in the background and once at a
// time. One that gives none is silent from then on.
func (t *Tasks) poke(k *task, c *conn) {
	t.probed(c, func() {
		_, _ = call(k.ctx, c, "tell its state", t.cfg.Deadlines.State, c.shim.State, &shimtask.StateRequest{Id: k.id})
	})
}

// pokeBox is poke for a sandbox.
func (t *Tasks) pokeBox(b *box, c *conn) {
	t.probed(c, func() {
		_, _ = call(b.ctx, c, "answer a ping", t.cfg.Deadlines.State, c.box.PingSandbox, &shimbox.PingRequest{SandboxId: b.id})
	})
}

func (t *Tasks) probed(c *conn, ask func()) {
	if !c.probing.CompareAndSwap(false, true) {
		return
	}
	if t.begin() != nil {
		c.probing.Store(false)
		return
	}
	t.wg.Go(func() {
		defer c.probing.Store(false)
		ask()
	})
	t.wg.Done()
}

// missed notes that a shim has let a deadline pass.
func (c *conn) missed() { c.silent.CompareAndSwap(0, time.Now().UnixNano()) }

// silentFor tells for how long a shim has not answered; 0 if it does.
func (c *conn) silentFor() time.Duration {
	since := c.silent.Load()
	if since == 0 {
		return 0
	}
	return max(time.Since(time.Unix(0, since)), 1)
}

// statistics tells what a task has used: its shim does, else the daemon reads
// the control group itself. asking is the deadline for all of a question about
// many.
func (t *Tasks) statistics(asking context.Context, k *task) (*types.Metric, error) {
	v := k.view()
	if v.exit != nil {
		return nil, errors.New("it has ended")
	}
	if v.stand == connected && asking.Err() == nil && t.answers(k, v.conn) {
		reply, err := call(asking, v.conn, "tell its statistics", t.cfg.Deadlines.State, v.conn.shim.Stats, &shimtask.StatsRequest{Id: k.id})
		if err == nil {
			return &types.Metric{Timestamp: timestamppb.New(t.cfg.Now()), Id: k.id, Data: reply.GetStats()}, nil
		}
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errShimGone) {
			return nil, err
		}
		if asking.Err() != nil {
			v.conn.missed()
		}
	}
	return t.ownStatistics(k)
}

func (t *Tasks) ownStatistics(k *task) (*types.Metric, error) {
	handle, err := k.open("")
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	group, err := cgroup.Of(handle.PID())
	if err == nil && !handle.Alive() {
		err = errors.New("it has ended")
	}
	if err != nil {
		return nil, err
	}
	typ, value, err := group.Metrics()
	if err != nil {
		return nil, fmt.Errorf("statistics without the shim: %w", err)
	}
	return &types.Metric{Timestamp: timestamppb.New(t.cfg.Now()), Id: k.id, Data: &anypb.Any{TypeUrl: typ, Value: value}}, nil
}
