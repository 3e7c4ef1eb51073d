package main

import (
	"strings"
	"testing"
	"time"
)

// TestLockOfADyingDaemon takes a lock that is let go of a moment later, as that
// of a daemon which was killed is, and does not get one that is kept.
func TestLockOfADyingDaemon(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDir("root", dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir("root", dir); err == nil || !strings.Contains(err.Error(), "another berthd") {
		t.Fatalf("a lock that is held: %v", err)
	}
	timer := time.AfterFunc(lockPatience/10, func() { first.Close() })
	defer timer.Stop()
	second, err := lockDir("root", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}
