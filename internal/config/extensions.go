package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/internal/size"
)

// Proxy is a snapshotter that is another program.
type Proxy struct {
	Address      string   `toml:"address" comment:"Unix socket on which the program serves containerd's snapshots service."`
	Capabilities []string `toml:"capabilities,omitempty" comment:"What it can, as clients ask for it: remap-ids, only-remap-ids, rebase."`
	Timeout      Duration `toml:"timeout,omitempty" comment:"How long one call may take; 0s: two minutes."`
}

// Overlay says what the mounts of the snapshotter overlayfs are like.
type Overlay struct {
	Volatile  bool   `toml:"volatile" comment:"Writable layers of containers are not flushed when they are unmounted: faster, and after a power cut such a container's files are lost. Layers of images are flushed all the same."`
	UserXattr string `toml:"userxattr" comment:"Marks of layers in user.overlay.* instead of trusted.overlay.*: auto (only in a user namespace), yes or no."`
	UpperDir  bool   `toml:"upperdir_label" comment:"Tell the directory of a writable layer in the label containerd.io/snapshot/overlay.upperdir."`
	Quota     string `toml:"quota" comment:"Most that one writable layer may take, such as 10GiB; empty: no limit. Needs project quotas on the file system of root: ext4 or XFS mounted with prjquota."`
}

// Processor is a program that turns one kind of stream into another, on the way
// from a blob to a tar.
type Processor struct {
	Accepts []string `toml:"accepts" comment:"Media types that it reads."`
	Returns string   `toml:"returns" comment:"Media type of what it writes."`
	Path    string   `toml:"path" comment:"The program."`
	Args    []string `toml:"args,omitempty"`
	Env     []string `toml:"env,omitempty" comment:"NAME=VALUE; the program gets these, PATH, and nothing else."`
	Timeout Duration `toml:"timeout,omitempty" comment:"How long it may take for one layer; 0s: ten minutes."`
}

// Verifiers are the programs that have to agree before an image is named.
type Verifiers struct {
	Dir     string   `toml:"dir" comment:"Every program in this directory is asked before a pulled image gets its name; empty, or no such directory: none."`
	Max     int      `toml:"max" comment:"Most programs there may be; with more, nothing is pulled."`
	Timeout Duration `toml:"timeout" comment:"How long one of them may take."`
}

// Values of Overlay.UserXattr.
const (
	Auto = "auto"
	Yes  = "yes"
	No   = "no"
)

// maxProxies and maxProcessors bound what one configuration may name.
const (
	maxProxies    = 32
	maxProcessors = 32
)

// checkExtensions tells what is wrong with the tables that name other programs.
func (c *Config) checkExtensions() []error {
	var errs []error
	wrong := func(key, text string) {
		if text != "" {
			errs = append(errs, fmt.Errorf("configuration key %s: %s: %w", key, text, errdefs.ErrInvalidArgument))
		}
	}
	wrong("proxy_snapshotters", when(len(c.Proxies) > maxProxies, "%d are more than %d", len(c.Proxies), maxProxies))
	for _, name := range slices.Sorted(maps.Keys(c.Proxies)) {
		key, p := "proxy_snapshotters."+name, c.Proxies[name]
		wrong(key, identifier(name))
		wrong(key, when(slices.Contains(own, name), "%q is one of berth's own snapshotters; choose another name", name))
		wrong(key+".address", socketPath(p.Address, ""))
		wrong(key+".timeout", atLeast(0, p.Timeout.Duration))
	}
	wrong("stream_processors", when(len(c.Processors) > maxProcessors, "%d are more than %d", len(c.Processors), maxProcessors))
	for _, id := range slices.Sorted(maps.Keys(c.Processors)) {
		key, p := "stream_processors."+id, c.Processors[id]
		wrong(key+".accepts", when(len(p.Accepts) == 0, "is empty; name the media types that it reads"))
		wrong(key+".returns", when(p.Returns == "", "is empty; name the media type that it writes"))
		wrong(key+".returns", when(slices.Contains(p.Accepts, p.Returns), "%q is also what it reads", p.Returns))
		wrong(key+".path", when(!filepath.IsAbs(p.Path), "%q is not an absolute path", p.Path))
		wrong(key+".timeout", atLeast(0, p.Timeout.Duration))
		for _, v := range p.Env {
			wrong(key+".env", when(!strings.Contains(v, "=") || strings.HasPrefix(v, "="), "%q is not NAME=VALUE", v))
		}
	}
	o := c.Overlay
	wrong("overlay.userxattr", when(o.UserXattr != Auto && o.UserXattr != Yes && o.UserXattr != No, "%q is none of auto, yes, no", o.UserXattr))
	if _, err := size.Parse(o.Quota); o.Quota != "" {
		wrong("overlay.quota", when(err != nil, "%v", err))
	}
	v := c.Verifiers
	wrong("image_verifiers.dir", when(v.Dir != "" && !filepath.IsAbs(v.Dir), "%q is not an absolute path", v.Dir))
	wrong("image_verifiers.max", atLeast(1, v.Max))
	wrong("image_verifiers.timeout", atLeast(1, v.Timeout.Duration))
	return errs
}

// own are the names of the snapshotters that are part of the daemon.
var own = []string{"overlayfs", "native", "erofs"}

func identifier(name string) string {
	err := names.Identifier(name)
	return when(err != nil, "%v", err)
}
