package restart

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apitask "github.com/berthd/berth/api/types/task"
)

// TestInterrupted has an engine find what another one has left that was ended in
// the midst of restarts: it goes on at once, and undoes the one that somebody has
// stopped meanwhile.
func TestInterrupted(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		for id, stopped := range map[string]string{"none": "false", "created": "false", "runs": "false", "stopped": "true", "gone": "true"} {
			if id != "none" && id != "gone" {
				w.live(id)
			}
			w.label(id, "status=running", "policy=always", "explicitly-stopped="+stopped)
			w.mu.Lock()
			w.records[id].Labels[pendingLabel] = "true"
			w.mu.Unlock()
		}
		w.tasks["created"].Status = apitask.Status_CREATED
		_, stop := w.engine()
		defer stop()
		time.Sleep(time.Second)
		synctest.Wait()
		got := w.take()
		for _, want := range []string{"start none", "start created", "kill stopped"} {
			if strings.Count(got, want) != 1 {
				t.Errorf("%q: not one %s", got, want)
			}
		}
		for _, never := range []string{"start runs", "kill runs", "start stopped", "start gone"} {
			if strings.Contains(got, never) {
				t.Errorf("%q: %s", got, never)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		for id, c := range w.records {
			if c.Labels[pendingLabel] != "" {
				t.Errorf("%s still counts as being restarted", id)
			}
		}
	})
}
