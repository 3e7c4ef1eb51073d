package services

import (
	"strings"

	"google.golang.org/grpc"
)

// unserved lists the services of the interface that this version has no code
// for, with what a client can do instead.
var unserved = map[string]string{
	"containerd.services.transfer.v1.Transfer": "write the content and create the image with their own services, or import an archive with berth images import",
	"containerd.services.mounts.v1.Mounts":     "mount on the client's side",
}

// unknown answers the methods of every service that is not registered.
func unknown(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	instead, ok := unserved[service]
	if !ok {
		instead = "it is not part of the interface"
	}
	return notServed(method, instead)
}
