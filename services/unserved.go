package services

import "google.golang.org/grpc"

// unknown answers the methods of every service that is not registered.
func unknown(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	return notServed(method, "it is not part of the interface")
}
