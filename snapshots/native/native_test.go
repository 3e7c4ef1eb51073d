package native

import (
	"testing"

	"github.com/berthd/berth/snapshots"
	"github.com/berthd/berth/snapshots/snapshottest"
)

func open(t *testing.T, root string) snapshots.Driver {
	t.Helper()
	d, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestSuite(t *testing.T) { snapshottest.Run(t, open) }
