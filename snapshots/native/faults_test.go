//go:build faults

package native

import (
	"testing"

	"github.com/berthd/berth/snapshots/snapshottest"
)

func TestFaults(t *testing.T) { snapshottest.RunFaults(t, "TestFaults", open) }
