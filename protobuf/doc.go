// Package protobuf owns what the wire does with protobuf beyond the messages
// themselves: how an Any names its type, how a filter reads a field of an
// event, how times are written. It does not know any message by name.
package protobuf
