package restart

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/labels"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Policy{
		"":               {Name: Always},
		"no":             {Name: No},
		"always":         {Name: Always},
		"unless-stopped": {Name: UnlessStopped},
		"on-failure":     {Name: OnFailure},
		"on-failure:0":   {Name: OnFailure},
		"on-failure:3":   {Name: OnFailure, Most: 3},
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"never", "always:3", "on-failure:", "on-failure:x", "on-failure:-1", "ALWAYS"} {
		if p, err := Parse(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", text, p, err)
		}
	}
	if got := (Policy{OnFailure, 3}).String(); got != "on-failure:3" {
		t.Error(got)
	}
}

// TestDecide holds what is done for each policy, wish and state of a task.
func TestDecide(t *testing.T) {
	state := func(s apitask.Status, exit uint32) *apitask.Process {
		return &apitask.Process{Status: s, ExitStatus: exit}
	}
	tasks := map[string]*apitask.Process{
		"none": nil, "created": state(apitask.Status_CREATED, 0), "running": state(apitask.Status_RUNNING, 0),
		"paused": state(apitask.Status_PAUSED, 0), "unknown": state(apitask.Status_UNKNOWN, 0),
		"ended 0": state(apitask.Status_STOPPED, 0), "ended 3": state(apitask.Status_STOPPED, 3),
	}
	for _, c := range []struct {
		labels string // those without their prefix, by blanks
		want   string // what is done, by task; leave for the rest
	}{
		{"status=running policy=always", "none=run created=begin ended 0=run ended 3=run"},
		{"status=running", "none=run created=begin ended 0=run ended 3=run"},
		{"status=running policy=unless-stopped", "none=run created=begin ended 0=run ended 3=run"},
		{"status=running policy=no", ""},
		{"status=running policy=on-failure", "created=begin ended 3=run"},
		{"status=running policy=on-failure:2 count=1", "created=begin ended 3=run"},
		{"status=running policy=on-failure:2 count=2", "created=begin"},
		{"status=running policy=always explicitly-stopped=true", ""},
		{"status=running policy=always explicitly-stopped=true pending=true", "running=end paused=end unknown=end"},
		{"status=running policy=on-failure pending=true", "none=run created=begin ended 3=run"},
		{"status=running policy=unless-stopped explicitly-stopped=true", ""},
		{"status=running policy=on-failure explicitly-stopped=true", ""},
		{"status=running policy=always explicitly-stopped=false", "none=run created=begin ended 0=run ended 3=run"},
		{"status=stopped policy=always", "running=end paused=end unknown=end"},
		{"status=stopped policy=always explicitly-stopped=true", ""},
	} {
		set := map[string]string{}
		for field := range strings.FieldsSeq(c.labels) {
			key, value, _ := strings.Cut(field, "=")
			if key == "pending" {
				set[pendingLabel] = value
				continue
			}
			set[strings.TrimSuffix(labels.RestartStatus, "status")+key] = value
		}
		w, ok, err := readWish(set)
		if !ok || err != nil {
			t.Fatal(c.labels, ok, err)
		}
		want := map[string]action{}
		for name := range tasks {
			want[name] = leave
			for _, a := range []action{run, begin, end} {
				if strings.Contains(c.want, name+"="+string(a)) {
					want[name] = a
				}
			}
		}
		for name, task := range tasks {
			if got, why := decide(w, task); got != want[name] || why == "" {
				t.Errorf("%s, task %s: %s (%s), want %s", c.labels, name, got, why, want[name])
			}
		}
	}
}

func TestReadWish(t *testing.T) {
	if _, ok, err := readWish(map[string]string{labels.RestartPolicy: "always"}); ok || err != nil {
		t.Error("a policy alone is no wish:", ok, err)
	}
	for _, set := range []map[string]string{
		{labels.RestartStatus: "perhaps"},
		{labels.RestartStatus: Running, labels.RestartPolicy: "sometimes"},
	} {
		if _, ok, err := readWish(set); !ok || !errdefs.IsInvalidArgument(err) {
			t.Error(set, ok, err)
		}
	}
}
