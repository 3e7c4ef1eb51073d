package protobuf

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type URLs of the values that travel as JSON, not as protobuf.
const (
	TypeSpec             = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
	TypeProcess          = "types.containerd.io/opencontainers/runtime-spec/1/Process"
	TypeLinuxResources   = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
	TypeWindowsResources = "types.containerd.io/opencontainers/runtime-spec/1/WindowsResources"
	TypeFeatures         = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
)

// MarshalAny packs a message under its bare full name, the way the wire names
// types. What is an Any already comes back as it is, whatever it holds. No
// message, or one with text that is no UTF-8, is InvalidArgument.
func MarshalAny(m proto.Message) (*anypb.Any, error) {
	if packed, ok := m.(*anypb.Any); ok {
		return packed, nil
	}
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil, fmt.Errorf("pack a message: there is none: %w", errdefs.ErrInvalidArgument)
	}
	name := m.ProtoReflect().Descriptor().FullName()
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return &anypb.Any{TypeUrl: string(name), Value: value}, nil
}

// TypeName gives the full name that a type URL ends in: all of it if bare, else
// what follows the last slash.
func TypeName(url string) protoreflect.FullName {
	return protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:])
}

// UnmarshalAny unpacks a message whose type is linked into this program, with
// or without a prefix before its name. A type that is not linked is NotFound:
// such an Any must be passed on as it is. One that does not parse, or none at
// all, is InvalidArgument.
func UnmarshalAny(packed *anypb.Any) (proto.Message, error) {
	url := packed.GetTypeUrl()
	if url == "" {
		return nil, fmt.Errorf("unpack a message: its type is not named: %w", errdefs.ErrInvalidArgument)
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(TypeName(url))
	if errors.Is(err, protoregistry.NotFound) {
		return nil, fmt.Errorf("unpack type %q: %w", url, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("unpack type %q: %w: %w", url, err, errdefs.ErrInvalidArgument)
	}
	m := kind.New().Interface()
	if err := proto.Unmarshal(packed.GetValue(), m); err != nil {
		return nil, fmt.Errorf("unpack type %q: %w: %w", url, err, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

// Is tells whether packed names the type of m.
func Is(packed *anypb.Any, m proto.Message) bool {
	return packed != nil && TypeName(packed.GetTypeUrl()) == m.ProtoReflect().Descriptor().FullName()
}

// MarshalJSONAny packs a value that travels as JSON under one of the Type...
// URLs.
func MarshalJSONAny(url string, v any) (*anypb.Any, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", url, err)
	}
	return &anypb.Any{TypeUrl: url, Value: value}, nil
}
