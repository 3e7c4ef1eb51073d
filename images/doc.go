// Package images owns what an image means: which blobs belong to it on which
// platform, what keeps them from collection, how an archive becomes an image,
// and an image a chain of snapshots. It keeps nothing itself: blobs, snapshots
// and names are rows of package metadata.
//
// An image that is listed is whole. Import writes blobs as they come, under a
// lease that nobody else knows; it then reads index and manifests, checks that
// every blob of the chosen platform is there, puts the labels on them by which
// one keeps the next, and unpacks the layers. The name comes last. Whatever
// goes wrong before, the lease goes, and with it, at the next collection, all
// that came under it.
//
// A layer is unpacked once, however many ask for it: whoever comes second waits
// for the first and finds its snapshot. Its name is the chain id, so it stands
// for the layer and all below it.
package images
