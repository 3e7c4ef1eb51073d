// Package remotes owns the way to registries: where the images of a name are to be
// found, with which keys and under which rules, and how they are asked, fetched from
// and pushed to. It keeps nothing; what is fetched is for its caller to store.
//
// What an administrator says about registries stands in a directory with a
// directory for each of them, as containerd and docker have it. It is read anew for
// each reference, so a change needs no restart.
//
// A Client is made once and holds connections. Open gives the Repository of a
// reference, for one caller with that caller's credentials:
//
//	Open ─► Hosts (hosts.toml) ─► an endpoint for each host, in order
//	Resolve, Get, Manifest, Blob, Exists, Tags, Referrers      at the first that has it
//	PushBlob, PushManifest                                     at the first that may take it
//
// Each request passes, from above: oras-go's authentication; the guard, which keeps
// what is for one host from others; the redirect policy; retries; and the wire, which
// ends what doesn't move. Registries are met as strangers: nothing they say costs more
// than bounded time and memory, or tells them more than is theirs to know.
package remotes
