package metadata

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	snapshotapi "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata/rows"
)

// TestLook compares what collection reads from stored bytes with the messages
// that were stored, so that no number of a field can be wrong.
func TestLook(t *testing.T) {
	at := time.Unix(2_000_000_000, 0).UTC()
	given := map[string]string{
		"other": "x", labels.GCRefContent + ".0": "sha256:a", labels.GCBackRefContainer: "c",
		labels.GCExpire: at.Format(time.RFC3339), labels.GCFlat: "1", labels.GCRoot + ".x": "1", labels.GCUsedAt: at.Format(time.RFC3339),
		labels.GCRefSnapshot + "a.b/c": "k", labels.GCCondSnapshot + "n/1": "usedat<1h|k",
		labels.GCRefMount: "m", labels.GCRef + "contentz": "sha256:b", labels.GCRef + "snapshot": "k", labels.GCRefImage: "",
	}
	labeled := []node{{kindContent, "ns", "sha256:a"}, {kindMount, "ns", "m"}, snapshotNode("ns", "a.b", "k")}
	back := []node{{kindContainer, "ns", "c"}}
	conds := []condition{{snapshotNode("ns", "n", "k"), time.Hour}}
	container := testContainer("c")
	container.Labels, container.Snapshotter, container.SnapshotKey = given, "s", "key"
	image := testImage("i", "sha256:t")
	image.Labels = given
	for name, c := range map[string]struct {
		n    node
		m    proto.Message
		want facts
	}{
		"container": {node{kindContainer, "ns", "c"}, container, facts{
			usedAt: at, fixed: []node{snapshotNode("ns", "s", "key")}, labeled: labeled, back: back}},
		"image": {node{kindImage, "ns", "i"}, image, facts{
			usedAt: at, expires: at, fixed: []node{{kindContent, "ns", "sha256:t"}}, labeled: labeled, back: back, conds: conds}},
		"lease": {node{kindLease, "ns", "l"}, &leases.Lease{Id: "l", Labels: given, CreatedAt: timestamppb.New(at)}, facts{
			usedAt: at, expires: at, flat: true, labeled: labeled, back: back}},
		"content": {node{kindContent, "ns", "d"}, &contentapi.Info{Digest: "d", Size: 1 << 40, Labels: given}, facts{
			root: true, usedAt: at, labeled: labeled, back: back, conds: conds}},
		"ingest": {node{kindIngest, "ns", "r"}, &rows.Ingest{
			Status:    &contentapi.Status{Ref: "r", Expected: "sha256:e", StartedAt: timestamppb.New(at)},
			ExpiresAt: &timestamppb.Timestamp{Seconds: at.Unix(), Nanos: 5},
		}, facts{expires: at, fixed: []node{{kindContent, "ns", "sha256:e"}}}},
		"mounts": {node{kindMount, "ns", "m"}, &rows.Activation{Info: &types.ActivationInfo{
			Name: "m", Active: []*types.ActiveMount{{MountPoint: "p"}}, Labels: given}, Id: 3,
		}, facts{usedAt: at, labeled: labeled, back: back}},
		"mounts of nobody":  {node{kindMount, "ns", "m"}, &rows.Activation{Info: &types.ActivationInfo{Name: "m"}, Id: 3}, facts{root: true}},
		"mounts for a time": {node{kindMount, "ns", "m"}, &rows.Activation{Info: &types.ActivationInfo{Name: "m"}, Temporary: true, BootId: "b"}, facts{}},
		"snapshot": {snapshotNode("ns", "s", "k"), &rows.Snapshot{
			Info: &snapshotapi.Info{Name: "k", Parent: "p", Kind: snapshotapi.Kind_ACTIVE, Labels: given}, Id: 7, Size: 1,
		}, facts{root: true, usedAt: at, fixed: []node{snapshotNode("ns", "s", "p")}, labeled: labeled, back: back}},
	} {
		// Deterministic, so that labels come in the order of their keys.
		value, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := look(c.n, value)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(facts{}, node{}, condition{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func FuzzLook(f *testing.F) {
	container := testContainer("c")
	container.Labels = map[string]string{labels.GCRefContent: "x", labels.GCExpire: "y"}
	value, err := proto.Marshal(container)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(kindContainer), value)
	f.Fuzz(func(t *testing.T, k uint8, value []byte) {
		n := node{kindContainer + kind(k)%kindContent, "ns", path("s", "key")}
		_, _ = look(n, value)
		for _, field := range []string{"id", "image", "runtime", "labels"} {
			rawContainer(value).Field([]string{field, "name"})
		}
	})
}
