// Package mount owns what berth knows of mounts: their description, fstab-style
// options turned into system calls, and clean unmounting.
package mount

// Mount describes one mount, in the terms of mount(8). It is the Go side of the
// wire message containerd.types.Mount.
type Mount struct {
	Type    string   // file system, or "bind"
	Source  string   // device, directory, or the type's own name
	Target  string   // a subdirectory of the mount point; usually empty
	Options []string // fstab style
}
