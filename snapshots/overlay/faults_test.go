//go:build faults

package overlay

import (
	"testing"

	"github.com/berthd/berth/snapshots/snapshottest"
)

func TestFaults(t *testing.T) { snapshottest.RunFaults(t, "TestFaults", open) }
