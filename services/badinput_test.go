package services

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
)

// fill sets every field of a message: texts to text, numbers to n, messages to
// filled ones down to depth.
func fill(m protoreflect.Message, text string, n int64, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			if f.MapValue().Kind() == protoreflect.StringKind {
				m.Mutable(f).Map().Set(protoreflect.ValueOfString(text).MapKey(), protoreflect.ValueOfString(text))
			} else if f.MapValue().Kind() == protoreflect.MessageKind && depth > 0 {
				fill(m.Mutable(f).Map().Mutable(protoreflect.ValueOfString(text).MapKey()).Message(), text, n, depth-1)
			}
		case f.IsList():
			if f.Kind() == protoreflect.MessageKind {
				if depth > 0 {
					fill(m.Mutable(f).List().AppendMutable().Message(), text, n, depth-1)
				}
			} else if v, ok := value(f, text, n); ok {
				m.Mutable(f).List().Append(v)
			}
		case f.Kind() == protoreflect.MessageKind:
			if sub := m.Mutable(f).Message(); depth > 0 {
				fill(sub, text, n, depth-1)
			}
		default:
			if v, ok := value(f, text, n); ok {
				m.Set(f, v)
			}
		}
	}
}

func value(f protoreflect.FieldDescriptor, text string, n int64) (protoreflect.Value, bool) {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text), true
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(text)), true
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true), true
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n), true
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n)), true
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n)), true
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n)), true
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(int32(n))), true
	}
	return protoreflect.Value{}, false
}

// Every method of every service gets messages that are empty, half empty and
// full of nonsense, with and without a namespace. None may panic, and none may
// blame the daemon.
func TestBadInputNeverPanics(t *testing.T) {
	var server *grpc.Server
	d := start(t, func(c *Config) {
		s, err := New(*c) // for its list of methods
		if err != nil {
			t.Fatal(err)
		}
		server = s.grpc
		t.Cleanup(func() { s.stop(); s.grpc.Stop() })
	})
	called := 0
	for service := range server.GetServiceInfo() {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			t.Fatal(err)
		}
		methods := found.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			called++
			torment(t, d, "/"+service+"/"+string(methods.Get(i).Name()), methods.Get(i))
		}
	}
	if called < 60 {
		t.Errorf("only %d methods were found", called)
	}
	if log := d.log.String(); strings.Contains(log, "call panicked") {
		t.Error(log[strings.Index(log, "call panicked"):])
	}
}

func torment(t *testing.T, d *daemon, name string, m protoreflect.MethodDescriptor) {
	for _, namespace := range []string{"", "ns", "a b"} {
		for _, depth := range []int{-1, 0, 2} {
			for _, text := range []string{"x", "../../etc", "sha256:zz", strings.Repeat("ä/", 5000)} {
				in := dynamicpb.NewMessage(m.Input())
				if depth >= 0 {
					fill(in, text, int64(depth)*1000-1, depth)
				}
				err := invoke(t, d, name, namespace, m, in)
				if code := status.Code(err); code == codes.Internal || code == codes.DataLoss {
					t.Errorf("%s of namespace %q with depth %d and %.10q: %v", name, namespace, depth, text, err)
				}
				if depth < 0 {
					break
				}
			}
		}
	}
}

func invoke(t *testing.T, d *daemon, name, namespace string, m protoreflect.MethodDescriptor, in proto.Message) error {
	timeout := 10 * time.Second
	if endless[name] {
		timeout = 20 * time.Millisecond // it may wait for what never comes
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	ctx = grpcmetadata.AppendToOutgoingContext(ctx, namespaceHeader, namespace)
	s, err := d.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, name)
	if err != nil {
		return err
	}
	if err := s.SendMsg(in); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	for {
		if err := s.RecvMsg(dynamicpb.NewMessage(m.Output())); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Messages above the bound are refused, and the connection lives on.
func TestMessageTooLarge(t *testing.T) {
	d := start(t)
	s, err := contentgrpc.NewContentClient(d).Write(in(t, "ns"), grpc.MaxCallSendMsgSize(MaxMessage+1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&content.WriteContentRequest{Ref: "r", Action: content.WriteAction_WRITE, Data: make([]byte, MaxMessage)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
	if _, err := contentgrpc.NewContentClient(d).ListStatuses(in(t, "ns"), &content.ListStatusesRequest{}); err != nil {
		t.Error(err)
	}
}
