package main

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestTrimmer: memory is given back once, some time after the last of what needed it.
func TestTrimmer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var count atomic.Int32
		told := func() int { synctest.Wait(); return int(count.Load()) }
		m := &trimmer{trim: func() { count.Add(1) }}
		for range 3 {
			m.rest()
			time.Sleep(restTime - time.Second)
		}
		if n := told(); n != 0 {
			t.Errorf("%d times amidst the work", n)
		}
		time.Sleep(2 * time.Second)
		if n := told(); n != 1 {
			t.Errorf("%d times afterwards", n)
		}
		m.rest()
		time.Sleep(2 * restTime)
		if n := told(); n != 2 {
			t.Errorf("%d times after the second work", n)
		}
		m.rest()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * restTime)
		if told() != 2 {
			t.Error("once more after the end")
		}
	})
}

// TestTrimGivesBack frees a heap that nobody needs any more.
func TestTrimGivesBack(t *testing.T) {
	for range 64 {
		sink = make([]byte, 1<<20)
	}
	sink = nil
	trim()
	if n := heap(); n > 32<<20 {
		t.Errorf("%d bytes are held", n)
	}
}

var sink []byte
