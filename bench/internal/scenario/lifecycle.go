package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
)

func lifecycleScenario() *Scenario {
	return &Scenario{
		Name:   "lifecycle",
		Title:  "One container at a time, from snapshot to removal; the limit mounts an overlay and drives the OCI runtime directly",
		Rounds: func(p *Params) int { return p.LifecycleRounds },
		Setup:  setupPayload,
		Round: func(ctx context.Context, r *Run, round int) error {
			for range r.P.LifecyclePerRound {
				if err := r.lifecycle(ctx, r.id("life"), r.addMs); err != nil {
					return err
				}
			}
			return nil
		},
		LimitSetup: limitSetup,
		LimitRound: func(ctx context.Context, r *Run, round int) error {
			for range r.P.LifecyclePerRound {
				if err := r.State.(*direct).lifecycle(r.id("life")); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func limitSetup(_ context.Context, r *Run) error {
	d, err := newDirect(r)
	r.State = d
	return err
}

// phases times consecutive steps.
type phases struct {
	begin, last time.Time
	add         func(metric string, d time.Duration)
}

func newPhases(add func(string, time.Duration)) *phases {
	now := time.Now()
	return &phases{begin: now, last: now, add: add}
}

func (p *phases) step(name string) {
	now := time.Now()
	p.add(name, now.Sub(p.last))
	p.last = now
}

func (p *phases) total(name string) { p.add(name, time.Since(p.begin)) }

// lifecycle runs one container through its whole life.
func (r *Run) lifecycle(ctx context.Context, id string, add func(string, time.Duration)) error {
	p := newPhases(add)
	if err := r.prepareSnapshot(ctx, id); err != nil {
		return fmt.Errorf("snapshot prepare: %w", err)
	}
	p.step("snapshot prepare")
	c, err := r.createContainer(ctx, id, "exit", "7")
	if err != nil {
		return fmt.Errorf("container create: %w", err)
	}
	p.step("container create")
	b := &box{id: id, c: c}
	if b.task, err = c.NewTask(ctx, cio.NullIO); err != nil {
		return fmt.Errorf("task create: %w", err)
	}
	p.step("task create")
	if b.exit, err = b.task.Wait(ctx); err != nil {
		return fmt.Errorf("task wait: %w", err)
	}
	if err := b.task.Start(ctx); err != nil {
		return fmt.Errorf("task start: %w", err)
	}
	p.step("task start")
	if err := b.waitExit(ctx, 7); err != nil {
		return err
	}
	p.step("exit reported")
	p.total("run to exit")
	if _, err := b.task.Delete(ctx); err != nil {
		return fmt.Errorf("task delete: %w", err)
	}
	p.step("task delete")
	if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		return fmt.Errorf("container delete: %w", err)
	}
	p.step("container+snapshot delete")
	p.total("total")
	return nil
}

// lifecycle is the same without a daemon.
func (d *direct) lifecycle(id string) error {
	p := newPhases(d.r.addMs)
	b, err := d.mountRootfs(id)
	if err != nil {
		return err
	}
	p.step("snapshot prepare")
	if err := d.writeSpec(b, "exit", "7"); err != nil {
		return err
	}
	p.step("container create")
	if err := d.create(b, nil); err != nil {
		return err
	}
	p.step("task create")
	if err := d.start(b); err != nil {
		return err
	}
	p.step("task start")
	code, err := d.wait(b)
	if err != nil || code != 7 {
		return fmt.Errorf("exit code %d, error %v", code, err)
	}
	p.step("exit reported")
	p.total("run to exit")
	if err := d.delete(b); err != nil {
		return err
	}
	p.step("task delete")
	if err := d.removeRootfs(b); err != nil {
		return err
	}
	p.step("container+snapshot delete")
	p.total("total")
	return nil
}
