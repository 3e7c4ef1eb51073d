package cgroup

import (
	"os"
	"testing"
	"time"
)

func TestKilledIn(t *testing.T) {
	const day = 24 * time.Hour
	kill := "3,1234,5000000,-;Memory cgroup out of memory: Killed process 77 (dd) total-vm:70184kB, anon-rss:15468kB, file-rss:1028kB\n"
	for _, c := range []struct {
		record string
		now    time.Duration
		want   bool
	}{
		{kill, 5 * time.Second, true},
		{kill, 40 * time.Second, true},
		{kill, 2 * time.Minute, false},
		{"3,1,86300000000,-;Out of memory: Killed process 77 (dd) total-vm:1kB", day, true}, // the machine's memory
		{"3,1,86340000000,-,caller=T1;Memory cgroup out of memory: Killed process 77 (dd) total-vm:1kB", day, true},
		{"3,1,80000000000,-;Memory cgroup out of memory: Killed process 77 (dd) total-vm:1kB", day, false},
		{"3,1,5000000,-;Memory cgroup out of memory: Killed process 777 (dd) total-vm:1kB", 5 * time.Second, false},
		{"12,1,5000000,-;systemd: Killed process 77 (dd)", 5 * time.Second, false},
		{"3,1,x,-;Memory cgroup out of memory: Killed process 77 (dd)", 5 * time.Second, false},
		{"3,1;Memory cgroup out of memory: Killed process 77 (dd)", 5 * time.Second, false},
		{"Memory cgroup out of memory: Killed process 77 (dd)", 5 * time.Second, false},
		{"", 0, false},
	} {
		if got := killedIn([]byte(c.record), 77, c.now); got != c.want {
			t.Errorf("%q at %v: %v", c.record, c.now, got)
		}
	}
}

// TestKilledNobody reads this machine's log, where it may.
func TestKilledNobody(t *testing.T) {
	killed, err := Killed(os.Getpid())
	if err != nil {
		t.Log(err)
	}
	if killed {
		t.Error("this process is said to have been killed")
	}
}
