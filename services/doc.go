// Package services owns the daemon's face on the wire: one file per service,
// the interceptors that every call passes, and the server that listens. A
// service turns messages into calls of the package that knows the matter and
// back; what a call means is decided there, not here.
//
// A call passes edge (edge.go), which reads namespace and lease from its
// headers once, ends it when the daemon drains, maps its error to a status
// once, and keeps a panic from taking the daemon down. Below the services the
// namespace is an explicit parameter.
package services
