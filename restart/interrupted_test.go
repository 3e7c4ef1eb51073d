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
		for id, stopped := range map[string]string{"unknown": "false", "none": "false", "created": "false", "runs": "false", "stopped": "true", "gone": "true"} {
			if id != "none" && id != "gone" {
				w.live(id)
			}
			w.label(id, "status=running", "policy=always", "explicitly-stopped="+stopped)
			w.mu.Lock()
			w.records[id].Labels[pendingLabel] = "true"
			w.mu.Unlock()
		}
		w.tasks["created"].Status = apitask.Status_CREATED
		w.tasks["unknown"].Status = apitask.Status_UNKNOWN
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
		if strings.Contains(got, "unknown") {
			t.Errorf("%q: it is not known how that one stands", got)
		}
		w.mu.Lock()
		delete(w.tasks, "unknown") // a create that came to nothing is undone, of which nobody hears
		w.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if again := w.take(); !strings.Contains(again, "start unknown") {
			t.Errorf("%q: not started", again)
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
