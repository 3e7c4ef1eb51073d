package mount

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// options are fstab-style options, sorted by who has to act on them.
type options struct {
	flags       uintptr   // MS_*, propagation not included
	cleared     uintptr   // flags that an option turned off ("rw", "suid", ...)
	propagation []uintptr // MS_PRIVATE..., one system call each
	data        []string  // for the file system
	ids         idMap     // owners to show instead of those on disk
	loop        bool      // the source is a file that needs a loop device
}

// joined gives the file system's own options as mount(2) takes them.
func (o options) joined() string { return strings.Join(o.data, ",") }

// meaning is what one option word does.
type meaning struct {
	flag  uintptr
	clear bool
}

// words are the options that are no business of the file system. See mount(8),
// "filesystem-independent mount options".
var words = map[string]meaning{
	"async":         {unix.MS_SYNCHRONOUS, true},
	"atime":         {unix.MS_NOATIME, true},
	"bind":          {unix.MS_BIND, false},
	"defaults":      {},
	"dev":           {unix.MS_NODEV, true},
	"diratime":      {unix.MS_NODIRATIME, true},
	"dirsync":       {unix.MS_DIRSYNC, false},
	"exec":          {unix.MS_NOEXEC, true},
	"iversion":      {unix.MS_I_VERSION, false},
	"lazytime":      {unix.MS_LAZYTIME, false},
	"loud":          {unix.MS_SILENT, true},
	"mand":          {unix.MS_MANDLOCK, false},
	"noatime":       {unix.MS_NOATIME, false},
	"nodev":         {unix.MS_NODEV, false},
	"nodiratime":    {unix.MS_NODIRATIME, false},
	"noexec":        {unix.MS_NOEXEC, false},
	"noiversion":    {unix.MS_I_VERSION, true},
	"nolazytime":    {unix.MS_LAZYTIME, true},
	"nomand":        {unix.MS_MANDLOCK, true},
	"norelatime":    {unix.MS_RELATIME, true},
	"nostrictatime": {unix.MS_STRICTATIME, true},
	"nosuid":        {unix.MS_NOSUID, false},
	"nosymfollow":   {unix.MS_NOSYMFOLLOW, false},
	"rbind":         {unix.MS_BIND | unix.MS_REC, false},
	"relatime":      {unix.MS_RELATIME, false},
	"remount":       {unix.MS_REMOUNT, false},
	"ro":            {unix.MS_RDONLY, false},
	"rw":            {unix.MS_RDONLY, true},
	"silent":        {unix.MS_SILENT, false},
	"strictatime":   {unix.MS_STRICTATIME, false},
	"suid":          {unix.MS_NOSUID, true},
	"symfollow":     {unix.MS_NOSYMFOLLOW, true},
	"sync":          {unix.MS_SYNCHRONOUS, false},
}

// ways are the propagation types, which take a system call of their own.
var ways = map[string]uintptr{
	"private":     unix.MS_PRIVATE,
	"rprivate":    unix.MS_PRIVATE | unix.MS_REC,
	"shared":      unix.MS_SHARED,
	"rshared":     unix.MS_SHARED | unix.MS_REC,
	"slave":       unix.MS_SLAVE,
	"rslave":      unix.MS_SLAVE | unix.MS_REC,
	"unbindable":  unix.MS_UNBINDABLE,
	"runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// parse sorts the options of a mount of the given type. Options that speak to
// other programs than the kernel ("x-...", "X-...") are dropped, as mount(8)
// does.
func parse(fstype string, list []string) (options, error) {
	var o options
	if fstype == "bind" || fstype == "rbind" {
		o.flags |= words[fstype].flag
	}
	for _, option := range list {
		if err := o.add(option); err != nil {
			return options{}, err
		}
	}
	if strings.Contains(fstype, "/") {
		return options{}, fmt.Errorf("type %q needs a mount handler, which this daemon has none of: %w", fstype, errdefs.ErrNotImplemented)
	}
	if o.flags&unix.MS_BIND != 0 && len(o.data) > 0 {
		return options{}, fmt.Errorf("option %q on a bind mount: %w", o.data[0], errdefs.ErrInvalidArgument)
	}
	if o.loop && (o.flags&unix.MS_BIND != 0 || fstype == "overlay") {
		return options{}, fmt.Errorf("option \"loop\" on a mount of type %q, which is of no device: %w", fstype, errdefs.ErrInvalidArgument)
	}
	if !o.ids.given() {
		return o, nil
	}
	if o.flags&unix.MS_BIND == 0 && fstype != "overlay" {
		return options{}, fmt.Errorf("options uidmap and gidmap on a mount of type %q: %w", fstype, errdefs.ErrNotImplemented)
	}
	_, _, err := o.ids.parse()
	return o, err
}

func (o *options) add(option string) error {
	if word, ok := words[option]; ok {
		if word.clear {
			o.flags &^= word.flag
			o.cleared |= word.flag
		} else {
			o.flags |= word.flag
			o.cleared &^= word.flag
		}
		return nil
	}
	if way, ok := ways[option]; ok {
		o.propagation = append(o.propagation, way)
		return nil
	}
	key, value, _ := strings.Cut(option, "=")
	switch {
	case key == "uidmap":
		o.ids.uids = value
		return nil
	case key == "gidmap":
		o.ids.gids = value
		return nil
	case option == "loop":
		o.loop = true
		return nil
	case key == "loop":
		return fmt.Errorf("option %q: a loop device can't be chosen, only that there is one: %w", option, errdefs.ErrNotImplemented)
	case option == "" || strings.HasPrefix(key, "x-") || strings.HasPrefix(key, "X-"):
		return nil
	}
	o.data = append(o.data, option)
	return nil
}

// currentFlags turns what statfs(2) tells of a mount into mount flags.
func currentFlags(st int64) uintptr {
	var flags uintptr
	for _, pair := range [...]struct {
		st   int64
		flag uintptr
	}{
		{unix.ST_RDONLY, unix.MS_RDONLY}, {unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV},
		{unix.ST_NOEXEC, unix.MS_NOEXEC}, {unix.ST_NOATIME, unix.MS_NOATIME},
		{unix.ST_NODIRATIME, unix.MS_NODIRATIME}, {unix.ST_RELATIME, unix.MS_RELATIME},
	} {
		if st&pair.st != 0 {
			flags |= pair.flag
		}
	}
	return flags
}
