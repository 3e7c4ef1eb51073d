package api_test

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// fileSource is what the facts are taken from; protoregistry.Files is one.
type fileSource interface {
	RangeFiles(func(protoreflect.FileDescriptor) bool)
}

// factsOf lists the facts of all files but protobuf's and gRPC's own, sorted,
// in the form that testdata/contract.txt explains.
func factsOf(files fileSource) []string {
	var f facts
	files.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if file.Package() == "google" || strings.HasPrefix(string(file.Package()), "google.") {
			return true
		}
		for i := range file.Services().Len() {
			f.service(file.Services().Get(i))
		}
		f.enums(file.Enums())
		f.messages(file.Messages())
		return true
	})
	slices.Sort(f)
	return f
}

type facts []string

func (f *facts) add(words ...any) {
	*f = append(*f, strings.TrimSuffix(fmt.Sprintln(words...), "\n"))
}

func (f *facts) service(s protoreflect.ServiceDescriptor) {
	f.add("service", s.FullName())
	for i := range s.Methods().Len() {
		m := s.Methods().Get(i)
		kind := "unary"
		switch in, out := m.IsStreamingClient(), m.IsStreamingServer(); {
		case in && out:
			kind = "bidi-stream"
		case in:
			kind = "client-stream"
		case out:
			kind = "server-stream"
		}
		f.add("service", s.FullName(), "method", m.Name(),
			"("+m.Input().FullName()+")", "returns", "("+m.Output().FullName()+")", kind)
	}
}

func (f *facts) enums(enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		e := enums.Get(i)
		f.add("enum", e.FullName())
		for j := range e.Values().Len() {
			v := e.Values().Get(j)
			f.add("enum", e.FullName(), "value", v.Number(), v.Name())
		}
	}
}

func (f *facts) messages(messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		m := messages.Get(i)
		if m.IsMapEntry() {
			continue
		}
		f.add("message", m.FullName())
		for j := range m.Fields().Len() {
			fd := m.Fields().Get(j)
			f.add("message", m.FullName(), "field", fd.Number(), fd.Name(), typeOf(fd), labelOf(fd))
		}
		f.enums(m.Enums())
		f.messages(m.Messages())
	}
}

func typeOf(fd protoreflect.FieldDescriptor) string {
	if fd.IsMap() {
		return "map<" + typeOf(fd.MapKey()) + "," + typeOf(fd.MapValue()) + ">"
	}
	if m := fd.Message(); m != nil {
		return string(m.FullName())
	}
	if e := fd.Enum(); e != nil {
		return string(e.FullName())
	}
	return fd.Kind().String()
}

func labelOf(fd protoreflect.FieldDescriptor) string {
	if fd.IsMap() {
		return "map"
	}
	if fd.IsList() {
		if fd.IsPacked() {
			return "repeated packed"
		}
		return "repeated"
	}
	if oneof := fd.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
		return "oneof " + string(oneof.Name())
	}
	if fd.Message() == nil && fd.HasPresence() {
		return "optional"
	}
	return "singular"
}

// readContract gives the facts of a contract's text.
func readContract(text string) []string {
	var list []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			list = append(list, line)
		}
	}
	return list
}

// subject is what a fact is about: a name and, of a method, a field or a value,
// the name or number of that.
func subject(fact string) string {
	words := strings.Fields(fact)
	return strings.Join(words[:min(len(words), 4)], " ")
}

// compare reports each fact of want that have lacks or states otherwise, and
// each of have that want lacks but that is about a name of want: what is not in
// the contract must not look as if it were.
func compare(want, have []string) []string {
	wanted, had := map[string]bool{}, map[string]bool{}
	stated, known := map[string]string{}, map[string]bool{}
	for _, fact := range want {
		wanted[fact] = true
		known[strings.Fields(fact)[1]] = true
	}
	for _, fact := range have {
		had[fact] = true
		stated[subject(fact)] = fact
	}
	var report []string
	reported := map[string]bool{}
	for _, fact := range want {
		if had[fact] {
			continue
		}
		line := "missing: " + fact
		if other := stated[subject(fact)]; other != "" {
			line = "differs: " + fact + "\n     is: " + other
			reported[other] = true
		}
		report = append(report, line)
	}
	for _, fact := range have {
		if !wanted[fact] && !reported[fact] && known[strings.Fields(fact)[1]] {
			report = append(report, "invented: "+fact)
		}
	}
	return report
}
