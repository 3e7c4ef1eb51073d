package archive

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// Kinds of changes.
const (
	Added    ChangeKind = 'A'
	Modified ChangeKind = 'C' // of attributes, or of what it is
	Removed  ChangeKind = 'D' // with all that was in it
)

// ChangeKind is what became of a name.
type ChangeKind byte

// String gives the letter of a kind.
func (k ChangeKind) String() string { return string(rune(k)) }

// Change is what became of one name.
type Change struct {
	Kind ChangeKind
	Path string // from the root, with a slash before it
}

// Changes tells, each directory's names in byte order and directories before what is
// in them, what makes the tree upper differ from the tree lower. Files are the same
// as for Diff.
func Changes(ctx context.Context, lower, upper string, o DiffOptions, tell func(Change) error) error {
	return changes(ctx, lower, upper, &differ{o: o}, tell)
}

// ChangesUpper is Changes for a tree that is the upper directory of an overlay, and
// the merged tree of what is below it. Only what is in the upper directory is
// compared. NeedsMerge tells whether that will do.
func ChangesUpper(ctx context.Context, lower, upper string, o DiffOptions, tell func(Change) error) error {
	return changes(ctx, lower, upper, &differ{o: o, marks: true}, tell)
}

func changes(ctx context.Context, lower, upper string, d *differ, tell func(Change) error) (err error) {
	d.ctx, d.buf, d.other, d.lower = ctx, make([]byte, bufferSize), make([]byte, bufferSize), -1
	if d.upper, err = openTop(upper); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(d.upper)) }()
	if lower != "" {
		if d.lower, err = openTop(lower); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(d.lower)) }()
	}
	return d.walk(&folderNode{below: true}, func(n *folderNode, p *pair) (*folderNode, error) {
		return d.change(n, p, tell)
	})
}

// change tells what became of a name, and gives a directory to walk.
func (d *differ) change(n *folderNode, p *pair, tell func(Change) error) (*folderNode, error) {
	if d.marks && p.upper != nil && isWhiteoutDevice(p.upper) {
		p.upper = nil
	} else if d.marks && p.upper == nil && !n.opaque {
		return nil, nil // a socket, or gone just now
	}
	kind, f := Modified, &folderNode{name: n.join(p.base)}
	switch {
	case p.upper == nil && p.lower == nil:
		return nil, nil
	case p.upper == nil:
		return nil, tell(Change{Removed, "/" + f.name})
	case p.lower == nil:
		kind = Added
	}
	if d.o.Owner != nil {
		uid, gid := d.o.Owner(int(p.upper.Uid), int(p.upper.Gid))
		p.upper.Uid, p.upper.Gid = uint32(uid), uint32(gid)
	}
	same, err := d.same(p)
	if err == nil && !same {
		err = tell(Change{kind, "/" + f.name})
	}
	if err != nil || !p.isDir() {
		return nil, err
	}
	f.below, f.opaque = p.bothDirs(), n.opaque
	if d.marks && f.below && !f.opaque {
		_, marks, err := xattrs(p.upDir, p.base)
		if err != nil {
			return nil, err
		}
		f.opaque = marks["opaque"] == "y"
	}
	return f, nil
}
