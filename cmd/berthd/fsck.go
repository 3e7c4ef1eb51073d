package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/internal/config"
	"github.com/berthd/berth/internal/obs"
	"github.com/berthd/berth/internal/version"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/remotes"
	"github.com/berthd/berth/services"
)

const fsckUsage = `usage: berthd [flags] fsck [--repair] [--deep] [--no-fetch] [--adopt NAMESPACE]

Looks for damage in the store while no daemon runs, as berth fsck does through
the daemon. With --repair it also makes a whole database of a damaged or missing
one. Blobs and directories that this one does not know get rows in NAMESPACE
(default: default) in place of being removed.
`

// errDamage ends fsck when damage is left.
var errDamage = errors.New("damage is left")

// fsckCall is one run of berthd fsck.
type fsckCall struct {
	cfg           config.Config
	out           io.Writer
	log           *slog.Logger
	repair, deep  bool
	noFetch       bool
	adopt         string
	closers       []io.Closer
	options       metadata.Options
	drivers       drivers
	left, settled int
}

// fsck looks for damage, and repairs it.
func fsck(ctx context.Context, f *flags, args []string, out, errOut io.Writer) (err error) {
	c := &fsckCall{out: out}
	set := flag.NewFlagSet("berthd fsck", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.BoolVar(&c.repair, "repair", false, "")
	set.BoolVar(&c.deep, "deep", false, "")
	set.BoolVar(&c.noFetch, "no-fetch", false, "")
	set.StringVar(&c.adopt, "adopt", "default", "")
	if err := set.Parse(args); err != nil || set.NArg() > 0 {
		return fmt.Errorf("%s", fsckUsage)
	}
	if c.cfg, err = f.load(); err != nil {
		return err
	}
	c.log, _ = obs.Logger(errOut, slog.LevelError, c.cfg.Log.Format)
	held, err := claim(c.cfg)
	if err != nil {
		return fmt.Errorf("%w; while a daemon runs, `berth fsck` asks it", err)
	}
	c.closers = append(c.closers, held)
	defer func() {
		for _, closer := range slices.Backward(c.closers) {
			err = errors.Join(err, closer.Close())
		}
	}()
	return c.run(ctx)
}

func (c *fsckCall) run(ctx context.Context) error {
	blobs, err := content.Open(filepath.Join(c.cfg.Root, contentDir))
	if err != nil {
		return err
	}
	c.closers = append(c.closers, blobs)
	if c.drivers, err = openDrivers(c.cfg, c.log); err != nil {
		return err
	}
	c.closers = append(c.closers, c.drivers)
	c.options = metadata.Options{
		Path: filepath.Join(c.cfg.Root, database), Content: blobs, Drivers: c.drivers.usable(), Remotes: c.drivers.remotes(), Log: c.log,
	}
	db, err := metadata.Open(ctx, c.options)
	rebuilt := errors.Is(err, errdefs.ErrDataLoss) && c.repair
	if rebuilt {
		db, err = c.rebuild(ctx)
	}
	if err != nil {
		return err
	}
	c.closers = append(c.closers, db)
	store := &images.Store{DB: db, Platform: platforms.DefaultSpec(), Snapshotter: c.drivers.standard(c.cfg.Snapshotter), Log: c.log}
	if rebuilt {
		if err := c.bringTogether(ctx, db, store); err != nil {
			return err
		}
	}
	o := images.CheckOptions{Deep: c.deep, Images: true, Repair: c.repair}
	if c.repair && !c.noFetch {
		client := remotes.New(remotes.Config{HostsDir: c.cfg.Registry.HostsDir, UserAgent: "berth/" + version.Build().Version})
		defer client.Close()
		o.Fetch = services.NewFetcher(client)
	}
	for p := range store.Check(ctx, o) {
		c.say(p)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.left > 0 {
		return fmt.Errorf("%w: %d", errDamage, c.left)
	}
	if c.settled == 0 {
		fmt.Fprintln(c.out, "nothing is damaged")
	}
	return nil
}

// say prints one problem.
func (c *fsckCall) say(p metadata.Problem) {
	switch {
	case p.Note:
	case p.Repaired != "":
		c.settled++
		fmt.Fprintf(c.out, "REPAIRED  %s: %s\n", p, p.Repaired)
	case p.Failed != "":
		c.left++
		fmt.Fprintf(c.out, "DAMAGE    %s (not repaired: %s)\n", p, p.Failed)
	default:
		c.left++
		fmt.Fprintf(c.out, "DAMAGE    %s\n", p)
	}
}

// rebuild makes a whole database and opens it.
func (c *fsckCall) rebuild(ctx context.Context) (*metadata.DB, error) {
	r, err := metadata.Rebuild(c.options)
	if err != nil {
		return nil, err
	}
	c.settled++
	fmt.Fprintf(c.out, "REPAIRED  database: %s\n", r.Damage)
	if r.Aside != "" {
		fmt.Fprintf(c.out, "          the damaged file is %s\n", r.Aside)
	}
	fmt.Fprintf(c.out, "          %d rows could be read", r.Rows)
	if r.Copy != "" {
		fmt.Fprintf(c.out, ", %d more are of %s", r.Copied, r.Copy)
	}
	fmt.Fprintln(c.out)
	for _, bucket := range slices.Sorted(maps.Keys(r.Missing)) {
		if bucket != "" {
			fmt.Fprintf(c.out, "          rows of %s are lost: %v\n", bucket, r.Missing[bucket])
		}
	}
	return metadata.Open(ctx, c.options)
}

// bringTogether gives rows to what the rebuilt database does not know.
func (c *fsckCall) bringTogether(ctx context.Context, db *metadata.DB, store *images.Store) error {
	for p := range db.Check(ctx, metadata.CheckOptions{RowsOnly: true, Repair: &metadata.Repair{}}) {
		c.say(p)
	}
	blobs, directories, err := db.Adopt(ctx, c.adopt)
	if err != nil {
		return err
	}
	made, err := store.Recover(ctx, c.adopt, blobs)
	if err != nil {
		return err
	}
	if len(blobs)+directories > 0 {
		fmt.Fprintf(c.out, "          %d blobs without a row got one in namespace %s, and %d directories of snapshots as lost-N\n", len(blobs), c.adopt, directories)
	}
	for _, one := range made {
		fmt.Fprintf(c.out, "          image %s is %s\n", one.Name, one.Target.Digest)
	}
	return nil
}
