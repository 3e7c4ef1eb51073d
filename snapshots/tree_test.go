package snapshots

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// memory is Rows in a map.
type memory map[string]Row

func (m memory) Get(name string) (*Row, error) {
	row, ok := m[name]
	if !ok {
		return nil, nil
	}
	return &row, nil
}

func (m memory) Put(row *Row) error {
	m[row.Name] = *row
	return nil
}

func (m memory) Delete(name string) error {
	delete(m, name)
	return nil
}

func (m memory) HasChildren(name string) (bool, error) {
	for _, row := range m {
		if row.Parent == name {
			return true, nil
		}
	}
	return false, nil
}

// family is a tree with one of each kind: base and top committed, work active
// on top, loose active without a parent, look a view of top.
func family() memory {
	m := memory{}
	for _, row := range []Row{
		{ID: 1, Kind: Committed, Name: "base"},
		{ID: 2, Kind: Committed, Name: "top", Parent: "base"},
		{ID: 3, Kind: Active, Name: "work", Parent: "top"},
		{ID: 4, Kind: Active, Name: "loose"},
		{ID: 5, Kind: View, Name: "look", Parent: "top"},
		{ID: 6, Kind: Active, Name: "ring", Parent: "ring"},
		{ID: 7, Kind: Committed, Name: "orphan", Parent: "gone"},
	} {
		m[row.Name] = row
	}
	return m
}

// TestTreeRules is a table of single calls on the family; an error must leave
// every row as it was.
func TestTreeRules(t *testing.T) {
	now := time.Unix(1700000000, 0)
	create := func(key, parent string, parents ...ID) func(Tree) error {
		return func(t Tree) error {
			return t.Create(Row{ID: 9, Kind: Active, Name: key, Parent: parent, CreatedAt: now}, parents)
		}
	}
	commit := func(name, key, parent string, id ID) func(Tree) error {
		return func(t Tree) error {
			_, err := t.Commit(key, parent, Row{ID: id, Name: name, CreatedAt: now})
			return err
		}
	}
	remove := func(name string) func(Tree) error {
		return func(t Tree) error { _, err := t.Remove(name); return err }
	}
	mounts := func(key string) func(Tree) error {
		return func(t Tree) error { _, _, err := t.Mountable(key); return err }
	}
	for name, c := range map[string]struct {
		do   func(Tree) error
		want error
	}{
		"create alone":                {create("new", ""), nil},
		"create on a committed":       {create("new", "top", 2, 1), nil},
		"create without a key":        {create("", "top", 2, 1), errdefs.ErrInvalidArgument},
		"create in use":               {create("work", "top", 2, 1), errdefs.ErrAlreadyExists},
		"create in use by a name":     {create("top", "nope"), errdefs.ErrAlreadyExists},
		"create on nothing":           {create("new", "nope"), errdefs.ErrNotFound},
		"create on an active":         {create("new", "work"), errdefs.ErrInvalidArgument},
		"create on a view":            {create("new", "look"), errdefs.ErrInvalidArgument},
		"create, parent replaced":     {create("new", "top", 8, 1), errdefs.ErrUnavailable},
		"create on a broken chain":    {create("new", "orphan", 7), errdefs.ErrDataLoss},
		"commit":                      {commit("done", "work", "", 3), nil},
		"commit, parent repeated":     {commit("done", "work", "top", 3), nil},
		"commit, rebase":              {commit("done", "loose", "top", 4), nil},
		"commit, rebase on nothing":   {commit("done", "loose", "nope", 4), errdefs.ErrNotFound},
		"commit, rebase on an active": {commit("done", "loose", "work", 4), errdefs.ErrInvalidArgument},
		"commit, another parent":      {commit("done", "work", "base", 3), errdefs.ErrInvalidArgument},
		"commit nothing":              {commit("done", "nope", "", 3), errdefs.ErrNotFound},
		"commit a view":               {commit("done", "look", "", 5), errdefs.ErrFailedPrecondition},
		"commit a committed":          {commit("done", "top", "", 2), errdefs.ErrFailedPrecondition},
		"commit to a name in use":     {commit("base", "work", "", 3), errdefs.ErrAlreadyExists},
		"commit to itself":            {commit("work", "work", "", 3), errdefs.ErrAlreadyExists},
		"commit without a name":       {commit("", "work", "", 3), errdefs.ErrInvalidArgument},
		"commit, key replaced":        {commit("done", "work", "", 8), errdefs.ErrUnavailable},
		"remove":                      {remove("work"), nil},
		"remove a view":               {remove("look"), nil},
		"remove with children":        {remove("top"), errdefs.ErrFailedPrecondition},
		"remove nothing":              {remove("nope"), errdefs.ErrNotFound},
		"mounts":                      {mounts("work"), nil},
		"mounts of a view":            {mounts("look"), nil},
		"mounts of a committed":       {mounts("top"), errdefs.ErrFailedPrecondition},
		"mounts of nothing":           {mounts("nope"), errdefs.ErrNotFound},
		"mounts in a ring":            {mounts("ring"), errdefs.ErrDataLoss},
		"view":                        {func(t Tree) error { return t.Create(Row{ID: 9, Kind: View, Name: "v", Parent: "base"}, []ID{1}) }, nil},
		"create a committed":          {func(t Tree) error { return t.Create(Row{ID: 9, Kind: Committed, Name: "v"}, nil) }, errdefs.ErrInvalidArgument},
		"rebase that the driver can't": {func(tree Tree) error {
			return commit("done", "loose", "top", 4)(Tree{Rows: tree.Rows})
		}, errdefs.ErrNotImplemented},
		"target exists": {func(t Tree) error {
			return t.Create(Row{ID: 9, Kind: Active, Name: "new", Labels: map[string]string{RefLabel: "top"}}, nil)
		}, errdefs.ErrAlreadyExists},
		"target does not": {func(t Tree) error {
			return t.Create(Row{ID: 9, Kind: Active, Name: "new", Labels: map[string]string{RefLabel: "other"}}, nil)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			rows := family()
			err := c.do(Tree{Rows: rows, Rebase: true})
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Fatalf("%v; want %v", err, c.want)
			}
			equal := func(a, b Row) bool {
				return a.Name == b.Name && a.ID == b.ID && a.Kind == b.Kind && a.Parent == b.Parent
			}
			if err != nil && !maps.EqualFunc(rows, family(), equal) {
				t.Errorf("the call failed and left %v", rows)
			}
		})
	}
}

// TestTreeLife follows one snapshot from preparation to removal.
func TestTreeLife(t *testing.T) {
	rows := family()
	tree := Tree{Rows: rows, Rebase: true}
	born, done := time.Unix(1, 0), time.Unix(2, 0)
	parents, err := tree.CheckCreate("k", "top", nil)
	if err != nil || !slices.Equal(parents, []ID{2, 1}) {
		t.Fatalf("%v, %v", parents, err)
	}
	labels := map[string]string{"a": "b"}
	if err := tree.Create(Row{ID: 9, Kind: Active, Name: "k", Parent: "top", Labels: labels, CreatedAt: born}, parents); err != nil {
		t.Fatal(err)
	}
	row, parents, err := tree.Mountable("k")
	if err != nil || row.ID != 9 || !slices.Equal(parents, []ID{2, 1}) || !row.UpdatedAt.Equal(born) {
		t.Fatalf("%+v %v, %v", row, parents, err)
	}
	if row, err = tree.CheckCommit("n", "k", ""); err != nil || row.ID != 9 {
		t.Fatalf("%+v, %v", row, err)
	}
	row, err = tree.Commit("k", "", Row{ID: 9, Name: "n", Usage: Usage{Size: 5, Inodes: 1}, CreatedAt: done})
	if err != nil {
		t.Fatal(err)
	}
	info := row.Info()
	if info.Kind != Committed || info.Parent != "top" || len(info.Labels) != 0 || !info.CreatedAt.Equal(done) || !info.UpdatedAt.Equal(done) {
		t.Errorf("committed: %+v", info)
	}
	if _, err := tree.Stat("k"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("the key after the commit: %v", err)
	}
	if row, err = tree.Commit("loose", "n", Row{ID: 4, Name: "m"}); err != nil || row.Parent != "n" {
		t.Fatalf("rebase: %+v, %v", row, err)
	}
	if _, err := tree.Remove("n"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("remove with a child: %v", err)
	}
	for _, name := range []string{"m", "n"} {
		if row, err := tree.Remove(name); err != nil || row.Name != name {
			t.Errorf("remove %s: %+v, %v", name, row, err)
		}
	}
}
