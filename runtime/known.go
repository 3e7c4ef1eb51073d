package runtime

import (
	apitask "github.com/berthd/berth/api/types/task"
)

// Known gives what the daemon knows of a task's init without asking its shim;
// nil if there is no such task.
func (t *Tasks) Known(ns, id string) *apitask.Process {
	k := t.find(ns, id)
	if k == nil {
		return nil
	}
	v := k.view()
	if v.stand.hidden() {
		return nil
	}
	return k.known(v)
}
