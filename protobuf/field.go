package protobuf

import (
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// Field reads the field of m at path, for filters. Fields go by their names in
// the .proto file. A string is present when it is not empty, a bool always. A
// path goes on through messages, through an Any whose type is linked into this
// program, and into a map of strings, where all that is left of the path,
// joined with dots, is the key. Anything else (numbers, enums, bytes, times,
// lists) can't be read and is absent.
func Field(m proto.Message, path []string) (value string, present bool) {
	if m == nil {
		return "", false
	}
	return field(m.ProtoReflect(), path)
}

func field(m protoreflect.Message, path []string) (string, bool) {
	if len(path) == 0 || !m.IsValid() {
		return "", false
	}
	fd := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	if fd == nil || fd.IsList() || fd.HasPresence() && !m.Has(fd) {
		return "", false
	}
	value, rest := m.Get(fd), path[1:]
	switch {
	case fd.IsMap():
		return mapped(fd, value.Map(), rest)
	case fd.Kind() == protoreflect.MessageKind:
		return nested(value.Message(), rest)
	case len(rest) > 0:
		return "", false
	case fd.Kind() == protoreflect.BoolKind:
		return strconv.FormatBool(value.Bool()), true
	case fd.Kind() == protoreflect.StringKind:
		return value.String(), value.String() != ""
	}
	return "", false
}

func mapped(fd protoreflect.FieldDescriptor, m protoreflect.Map, path []string) (string, bool) {
	const text = protoreflect.StringKind
	if len(path) == 0 || fd.MapKey().Kind() != text || fd.MapValue().Kind() != text {
		return "", false
	}
	key := protoreflect.ValueOfString(strings.Join(path, ".")).MapKey()
	if !m.Has(key) {
		return "", false
	}
	return m.Get(key).String(), true
}

func nested(m protoreflect.Message, path []string) (string, bool) {
	packed, ok := m.Interface().(*anypb.Any)
	if !ok {
		return field(m, path)
	}
	inner, err := UnmarshalAny(packed)
	if err != nil {
		return "", false // not linked, or hostile: there is nothing to read
	}
	return field(inner.ProtoReflect(), path)
}
