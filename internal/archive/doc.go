// Package archive turns layer tars into directory trees, and trees into layer tars. Compression and
// digests are not its business.
//
// A layer comes from strangers, so nothing in it decides a path that the kernel
// resolves freely. Every entry is created by one system call with a directory
// file descriptor and a name without a slash. The descriptor comes from
// openat2(2) with RESOLVE_IN_ROOT (since 5.6), to which the root directory is
// "/": a symbolic link or ".." in a name leads to where it would lead in a
// process whose root directory that is, never outside. The last component of a
// name is never followed. What is already there under a name is removed, unless
// it is a directory and stays one.
//
// Whiteouts (OCI image spec, layer.md) act on what was there before this layer,
// wherever in the tar they stand: what the same layer brings survives them.
// They have two forms. In plain form what they hide is deleted; in overlay form
// it is marked for overlayfs in the upper directory, where a directory that the
// layer mentions only in a longer name is taken over from the layers below, as
// overlayfs itself would do.
//
// Memory is bounded whatever the tar says: archive/tar limits extended headers
// to 1 MiB, open directories are limited and carry their own pending times,
// and what this layer has brought is remembered only where something was there
// before it, at 16 bytes an entry.
package archive
