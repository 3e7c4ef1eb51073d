package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/config"
	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/size"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/services"
	"github.com/berthd/berth/snapshots"
	"github.com/berthd/berth/snapshots/erofs"
	"github.com/berthd/berth/snapshots/native"
	"github.com/berthd/berth/snapshots/overlay"
	"github.com/berthd/berth/snapshots/proxy"
)

// Names of the snapshotters, as clients know them.
const (
	overlayName = "overlayfs"
	nativeName  = "native"
	erofsName   = "erofs"
)

// Files under state that say with what root a driver was tried out since the
// machine was booted.
const (
	probedFile      = "overlay.probed"
	probedErofsFile = "erofs.probed"
)

// drivers are the snapshot drivers in the order of preference, usable or not.
type drivers []driver

type driver struct {
	name, root string
	snapshots.Driver
	remote *proxy.Client // instead of the driver: another program
	err    error         // why it can't be used
}

// openDrivers opens every driver that this machine can use. That overlay is not
// among them is told and is no error, unless the configuration wants it.
func openDrivers(cfg config.Config, log *slog.Logger) (_ drivers, err error) {
	var all drivers
	defer func() {
		if err != nil {
			err = errors.Join(err, all.Close())
		}
	}()
	// Both probes wait for the disk, so they do it together.
	images := driver{name: erofsName, root: filepath.Join(cfg.Root, erofsDir)}
	var probing sync.WaitGroup
	probing.Go(func() { images.err = probeErofs(cfg.State, images.root) })
	defer probing.Wait()
	over := driver{name: overlayName, root: filepath.Join(cfg.Root, overlayDir)}
	found, probed := probeOnce(cfg.State, over.root)
	if over.err = probed; over.err == nil {
		if found.remap != nil {
			log.Info("containers with user namespaces need the snapshotter native here", "reason", found.remap)
		}
		c, err := overlayConfig(cfg.Overlay, over.root)
		if err != nil {
			return nil, err
		}
		c.Remap = found.remap == nil
		if over.Driver, err = overlay.Open(c); err != nil {
			return nil, fmt.Errorf("snapshotter %s: %w", over.name, err)
		}
	}
	all = append(all, over)
	plain := driver{name: nativeName, root: filepath.Join(cfg.Root, nativeDir)}
	if plain.Driver, err = native.Open(plain.root); err != nil {
		return nil, fmt.Errorf("snapshotter %s: %w", plain.name, err)
	}
	all = append(all, plain)
	if probing.Wait(); images.err == nil {
		if images.Driver, err = erofs.Open(images.root, overlay.HostOptions()); err != nil {
			return nil, fmt.Errorf("snapshotter %s: %w", images.name, err)
		}
	}
	all = append(all, images)
	if err := all.openProxies(cfg, log); err != nil {
		return nil, err
	}
	if err := all.has(cfg.Snapshotter); err != nil {
		return nil, err
	}
	if over.err != nil {
		log.Warn("snapshotter overlayfs can't be used; native copies every layer instead", "error", over.err)
	}
	return all, nil
}

// overlayConfig is what the configuration wants of overlay.
func overlayConfig(o config.Overlay, root string) (overlay.Config, error) {
	c := overlay.Config{Root: root, Volatile: o.Volatile, UpperDir: o.UpperDir, UserXattr: o.UserXattr == config.Yes}
	if o.UserXattr == config.No {
		c.Options = slices.DeleteFunc(overlay.HostOptions(), func(option string) bool { return option == "userxattr" })
	}
	var err error
	if c.BootID, err = sys.BootID(); err != nil {
		return c, err
	}
	if o.Quota == "" {
		return c, nil
	}
	if c.Quota, err = size.Parse(o.Quota); err == nil && c.Quota > 0 {
		err = overlay.ProbeQuota(root)
	}
	if err != nil {
		return c, fmt.Errorf("configuration key overlay.quota: %w", err)
	}
	return c, nil
}

// has tells whether the snapshotter that the configuration wants can be used.
func (all drivers) has(wanted string) error {
	if wanted == "" {
		return nil
	}
	var names []string
	for _, d := range all {
		if d.name == wanted && d.err == nil {
			return nil
		}
		if d.name == wanted {
			return fmt.Errorf("configuration key snapshotter: %q: %w", wanted, d.err)
		}
		names = append(names, d.name)
	}
	return fmt.Errorf("configuration key snapshotter: there is no %q; choose one of %s", wanted, strings.Join(names, ", "))
}

// openProxies opens the snapshotters that are other programs. That one does not
// answer is told and is no error: it may come later.
func (all *drivers) openProxies(cfg config.Config, log *slog.Logger) error {
	for _, name := range slices.Sorted(maps.Keys(cfg.Proxies)) {
		p := cfg.Proxies[name]
		client, err := proxy.Open(proxy.Config{Name: name, Address: p.Address, Capabilities: p.Capabilities, Timeout: p.Timeout.Duration})
		if err != nil {
			return err
		}
		*all = append(*all, driver{name: name, remote: client})
		if err := client.Ping(context.Background()); err != nil {
			log.Warn("remote snapshotter not there; it is used as soon as it is", "snapshotter", name, "address", p.Address, "error", err)
		}
	}
	return nil
}

// remotes are the snapshotters that are other programs, by name.
func (all drivers) remotes() map[string]snapshots.Remote {
	out := map[string]snapshots.Remote{}
	for _, d := range all {
		if d.remote != nil {
			out[d.name] = d.remote
		}
	}
	return out
}

// probed is what overlay.Probe and overlay.ProbeRemap have found.
type probed struct {
	remap error // why owners can't be mapped
}

// noRemap in the mark says that owners can't be mapped, and after it why.
const noRemap = "no owners: "

// probeOnce probes overlay once for each boot and root: what it finds depends on the
// kernel and the file system, and it takes a good part of a daemon's start. state
// keeps the mark, which a reboot makes void.
func probeOnce(state, root string) (probed, error) {
	mark := filepath.Join(state, probedFile)
	before, err := os.ReadFile(mark)
	fact := probedFact(root)
	if rest, ok := strings.CutPrefix(string(before), fact); err == nil && ok && fact != "" {
		if why, ok := strings.CutPrefix(strings.TrimSpace(rest), noRemap); ok {
			return probed{errors.New(why)}, nil
		}
		return probed{}, nil
	}
	if err := overlay.Probe(root); err != nil {
		return probed{}, err
	}
	found := probed{overlay.ProbeRemap(root)}
	if fact = probedFact(root); fact != "" { // there may have been no root before
		if found.remap != nil {
			fact += noRemap + strings.ReplaceAll(found.remap.Error(), "\n", " ") + "\n"
		}
		// Without it the next start probes again.
		_ = durable.WriteVolatile("berthd.probed", mark, []byte(fact), 0o600)
	}
	return found, nil
}

// probeErofs probes erofs once for each boot and root, where its program is there.
func probeErofs(state, root string) error {
	if err := erofs.Installed(); err != nil {
		return err
	}
	mark := filepath.Join(state, probedErofsFile)
	before, err := os.ReadFile(mark)
	fact := probedFact(root)
	if why, ok := strings.CutPrefix(string(before), fact); err == nil && ok && fact != "" {
		if why = strings.TrimSpace(why); why != "" {
			return fmt.Errorf("%s: %w", why, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	found := erofs.Probe(root, overlay.HostOptions())
	if fact = probedFact(root); fact != "" {
		if found != nil {
			fact += strings.ReplaceAll(strings.TrimSuffix(found.Error(), ": "+errdefs.ErrFailedPrecondition.Error()), "\n", " ") + "\n"
		}
		// Without it the next start probes again.
		_ = durable.WriteVolatile("berthd.probed", mark, []byte(fact), 0o600)
	}
	return found
}

// probedFact tells this boot and directory from every other; "" if that can't be
// told.
func probedFact(root string) string {
	boot, err := sys.BootID()
	var st unix.Stat_t
	if err != nil || unix.Stat(root, &st) != nil {
		return ""
	}
	return fmt.Sprintf("%s %d:%d\n", boot, st.Dev, st.Ino)
}

// usable are the drivers that work, by name.
func (all drivers) usable() map[string]snapshots.Driver {
	out := map[string]snapshots.Driver{}
	for _, d := range all {
		if d.Driver != nil {
			out[d.name] = d.Driver
		}
	}
	return out
}

// standard is the snapshotter for images that berth itself unpacks.
func (all drivers) standard(configured string) string {
	if configured != "" {
		return configured
	}
	for _, d := range all {
		if d.Driver != nil {
			return d.name
		}
	}
	return ""
}

// told is what introspection tells of them.
func (all drivers) told() []services.Snapshotter {
	var out []services.Snapshotter
	for _, d := range all {
		s := services.Snapshotter{Name: d.name, Root: d.root, Err: d.err}
		if d.Driver != nil {
			s.Capabilities = d.Driver.Capabilities()
		}
		if d.remote != nil {
			s.Capabilities, s.Address = d.remote.Capabilities(), d.remote.Address()
		}
		out = append(out, s)
	}
	return out
}

// Close closes those drivers that hold something open.
func (all drivers) Close() error {
	var errs []error
	for _, d := range all {
		if c, ok := d.Driver.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
		if d.remote != nil {
			errs = append(errs, d.remote.Close())
		}
	}
	return errors.Join(errs...)
}
