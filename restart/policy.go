package restart

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/labels"
)

// Names of policies.
const (
	No            = "no"
	Always        = "always"
	OnFailure     = "on-failure" // alone, or with ":" and how often at most
	UnlessStopped = "unless-stopped"
)

// Values of labels.RestartStatus.
const (
	Running = "running"
	Stopped = "stopped"
)

// Policy says when a container that has ended is run again.
type Policy struct {
	Name string
	Most int // of on-failure: how often; 0 is no bound
}

// Parse reads a policy as it stands in a label or behind a flag; empty is
// always, as a label without a policy means. The error is InvalidArgument.
func Parse(text string) (Policy, error) {
	name, most, bounded := strings.Cut(text, ":")
	switch name {
	case "":
		name = Always
	case No, Always, OnFailure, UnlessStopped:
	default:
		return Policy{}, fmt.Errorf("restart policy %q is none of no, always, on-failure[:N], unless-stopped: %w", text, errdefs.ErrInvalidArgument)
	}
	p := Policy{Name: name}
	if !bounded {
		return p, nil
	}
	n, err := strconv.Atoi(most)
	if name != OnFailure || err != nil || n < 0 {
		return Policy{}, fmt.Errorf("restart policy %q: only on-failure takes a number of restarts, as on-failure:3: %w", text, errdefs.ErrInvalidArgument)
	}
	p.Most = n
	return p, nil
}

// String gives the policy as Parse reads it.
func (p Policy) String() string {
	if p.Most > 0 {
		return p.Name + ":" + strconv.Itoa(p.Most)
	}
	return p.Name
}

// pendingLabel is on a container from before its task is deleted for a restart
// until it runs again. A daemon that ends in between leaves no other trace of why
// there is no task, or one that was not started, and whose doing one is that runs
// although somebody has stopped it meanwhile.
const pendingLabel = "io.berth.restart.pending"

// wish is what the labels of a container say.
type wish struct {
	status  string // Running or Stopped
	policy  Policy
	count   int  // restarts so far
	stopped bool // by somebody, explicitly
	log     string
	pending bool // a restart has begun
}

// readWish reads the labels; ok is false if they are none of ours.
func readWish(set map[string]string) (w wish, ok bool, err error) {
	w.status, ok = set[labels.RestartStatus]
	if !ok || w.status == "" {
		return wish{}, false, nil
	}
	if w.status != Running && w.status != Stopped {
		return wish{}, true, fmt.Errorf("label %s is %q, neither running nor stopped: %w", labels.RestartStatus, w.status, errdefs.ErrInvalidArgument)
	}
	if w.policy, err = Parse(set[labels.RestartPolicy]); err != nil {
		return wish{}, true, err
	}
	w.count, _ = strconv.Atoi(set[labels.RestartCount]) // what is no number counts as none
	w.stopped, _ = strconv.ParseBool(set[labels.RestartStopped])
	w.log = set[labels.RestartLogURI]
	w.pending = set[pendingLabel] != ""
	return w, true, nil
}

// action is what is to be done with a container.
type action string

const (
	leave action = "leave" // as it is
	run   action = "run"   // the task that has ended is deleted, a new one made and started
	begin action = "begin" // the task is there, and only has to be started
	end   action = "end"   // the task is to be ended
)

// decide finds what is to be done. task is nil if there is none.
func decide(w wish, task *apitask.Process) (action, string) {
	alive := task != nil && task.GetStatus() != apitask.Status_STOPPED
	created := task != nil && task.GetStatus() == apitask.Status_CREATED
	switch {
	case w.stopped && w.pending && alive && !created:
		return end, "somebody has stopped it while it was being restarted"
	case w.stopped:
		return leave, "somebody has stopped it"
	case w.status == Stopped && alive && !created:
		return end, "it is to be stopped"
	case w.status == Stopped:
		return leave, "it is to be stopped, and is"
	case w.policy.Name == No:
		return leave, "its policy is no"
	case alive && task.GetStatus() == apitask.Status_UNKNOWN:
		return leave, "it is not known whether it runs"
	case created:
		return begin, "it was created and not started"
	case alive:
		return leave, "it runs"
	case w.policy.Name == Always || w.policy.Name == UnlessStopped:
		return run, "its policy is " + w.policy.Name
	case task == nil && w.pending:
		return run, "its restart had begun"
	case task == nil:
		return leave, "it has no task, so how it ended is not known"
	case task.GetExitStatus() == 0:
		return leave, "it has ended with 0"
	case w.policy.Most > 0 && w.count >= w.policy.Most:
		return leave, fmt.Sprintf("it was restarted %d times", w.count)
	}
	return run, fmt.Sprintf("it has ended with %d", task.GetExitStatus())
}
