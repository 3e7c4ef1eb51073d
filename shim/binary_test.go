package shim

import "testing"

func TestDefaultBinary(t *testing.T) {
	t.Setenv(BinaryVariable, "")
	if got := runtimeOf("ns", "", "/r", false).Binary; got != "" {
		t.Errorf("nothing is said, yet binary %q", got)
	}
	t.Setenv(BinaryVariable, "crun")
	if got := runtimeOf("ns", "", "/r", false).Binary; got != "crun" {
		t.Errorf("the daemon says crun, got %q", got)
	}
	if got := runtimeOf("ns", "youki", "/r", false).Binary; got != "youki" {
		t.Errorf("the task says youki, got %q", got)
	}
}
