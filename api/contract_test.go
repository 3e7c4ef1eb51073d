// Package api_test holds the generated code to the contract: every service,
// message, field and enum that clients and shims rely on.
package api_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

func TestContract(t *testing.T) {
	text, err := os.ReadFile("testdata/contract.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := readContract(string(text))
	if len(want) < 1000 {
		t.Fatalf("the contract has only %d facts", len(want))
	}
	if !slices.IsSorted(want) {
		t.Error("the contract is not sorted")
	}
	for _, line := range compare(want, factsOf(protoregistry.GlobalFiles)) {
		t.Error(line)
	}
}

// TestAllLinked: no generated package is left out of the comparison.
func TestAllLinked(t *testing.T) {
	linked, err := os.ReadFile("linked_test.go")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".pb.go") {
			return err
		}
		if pkg := `_ "github.com/berthd/berth/api/` + filepath.ToSlash(filepath.Dir(path)) + `"`; !strings.Contains(string(linked), pkg) {
			t.Errorf("%s is not linked", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDocumented: every service, method, message and enum says what it is.
func TestDocumented(t *testing.T) {
	declares := regexp.MustCompile(`^\s*(service|rpc|message|enum) (\w+)`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".proto" || strings.HasPrefix(path, "include/") {
			return err
		}
		text, err := os.ReadFile(path)
		before := ""
		for line := range strings.Lines(string(text)) {
			if m := declares.FindStringSubmatch(line); m != nil && !strings.HasPrefix(strings.TrimSpace(before), "//") {
				t.Errorf("%s: %s %s has no comment", path, m[1], m[2])
			}
			before = line
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOwnServicesStandApart: our own files import none that have containerd's
// names, so they can be linked beside containerd's client.
func TestOwnServicesStandApart(t *testing.T) {
	files, err := filepath.Glob("berth/*/*/*.proto")
	if err != nil || len(files) == 0 {
		t.Fatalf("own services: %v, %v", files, err)
	}
	for _, file := range files {
		d, err := protoregistry.GlobalFiles.FindFileByPath("api/" + filepath.ToSlash(file))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if !strings.HasPrefix(string(d.Package()), "berth.") {
			t.Errorf("%s: package %s", file, d.Package())
		}
		for i := range d.Imports().Len() {
			path := d.Imports().Get(i).Path()
			if !strings.HasPrefix(path, "google/") && !strings.HasPrefix(path, "api/berth/") {
				t.Errorf("%s imports %s", file, path)
			}
		}
	}
}

// sampleFacts are those of the file that sample describes.
var sampleFacts = []string{
	"enum a.v1.State",
	"enum a.v1.State value 0 OFF",
	"enum a.v1.State value 3 ON",
	"message a.v1.Thing",
	"message a.v1.Thing field 1 id string singular",
	"message a.v1.Thing field 2 maybe uint32 optional",
	"message a.v1.Thing field 3 one a.v1.Thing.Part oneof choice",
	"message a.v1.Thing field 4 other bytes oneof choice",
	"message a.v1.Thing field 5 numbers int64 repeated packed",
	"message a.v1.Thing field 6 names string repeated",
	"message a.v1.Thing field 7 labels map<string,a.v1.State> map",
	"message a.v1.Thing field 8 part a.v1.Thing.Part singular",
	"message a.v1.Thing.Part",
	"service a.v1.Things",
	"service a.v1.Things method Get (a.v1.Thing) returns (a.v1.Thing) unary",
	"service a.v1.Things method Pull (a.v1.Thing) returns (a.v1.Thing) server-stream",
	"service a.v1.Things method Push (a.v1.Thing) returns (a.v1.Thing) client-stream",
	"service a.v1.Things method Talk (a.v1.Thing) returns (a.v1.Thing) bidi-stream",
}

// sample describes a file with every form that a fact can have.
func sample() *descriptorpb.FileDescriptorProto {
	const (
		text    = descriptorpb.FieldDescriptorProto_TYPE_STRING
		message = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE
		enum    = descriptorpb.FieldDescriptorProto_TYPE_ENUM
	)
	number := int32(0)
	field := func(name string, kind descriptorpb.FieldDescriptorProto_Type, typeName string, list bool) *descriptorpb.FieldDescriptorProto {
		number++
		f := &descriptorpb.FieldDescriptorProto{
			Name: &name, Number: proto.Int32(number), Type: &kind, Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
		}
		if typeName != "" {
			f.TypeName = &typeName
		}
		if list {
			f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		}
		return f
	}
	method := func(name string, in, out bool) *descriptorpb.MethodDescriptorProto {
		return &descriptorpb.MethodDescriptorProto{
			Name: &name, InputType: proto.String(".a.v1.Thing"), OutputType: proto.String(".a.v1.Thing"),
			ClientStreaming: &in, ServerStreaming: &out,
		}
	}
	thing := &descriptorpb.DescriptorProto{
		Name:      proto.String("Thing"),
		OneofDecl: []*descriptorpb.OneofDescriptorProto{{Name: proto.String("choice")}, {Name: proto.String("_maybe")}},
		Field: []*descriptorpb.FieldDescriptorProto{
			field("id", text, "", false),
			field("maybe", descriptorpb.FieldDescriptorProto_TYPE_UINT32, "", false),
			field("one", message, ".a.v1.Thing.Part", false),
			field("other", descriptorpb.FieldDescriptorProto_TYPE_BYTES, "", false),
			field("numbers", descriptorpb.FieldDescriptorProto_TYPE_INT64, "", true),
			field("names", text, "", true),
			field("labels", message, ".a.v1.Thing.LabelsEntry", true),
			field("part", message, ".a.v1.Thing.Part", false),
		},
	}
	thing.Field[1].Proto3Optional, thing.Field[1].OneofIndex = proto.Bool(true), proto.Int32(1)
	thing.Field[2].OneofIndex, thing.Field[3].OneofIndex = proto.Int32(0), proto.Int32(0)
	number = 0
	thing.NestedType = []*descriptorpb.DescriptorProto{{Name: proto.String("Part")}, {
		Name:    proto.String("LabelsEntry"),
		Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)},
		Field:   []*descriptorpb.FieldDescriptorProto{field("key", text, "", false), field("value", enum, ".a.v1.State", false)},
	}}
	return &descriptorpb.FileDescriptorProto{
		Name: proto.String("a.proto"), Package: proto.String("a.v1"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{thing},
		EnumType: []*descriptorpb.EnumDescriptorProto{{Name: proto.String("State"), Value: []*descriptorpb.EnumValueDescriptorProto{
			{Name: proto.String("OFF"), Number: proto.Int32(0)}, {Name: proto.String("ON"), Number: proto.Int32(3)},
		}}},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("Things"), Method: []*descriptorpb.MethodDescriptorProto{
			method("Get", false, false), method("Push", true, false), method("Pull", false, true), method("Talk", true, true),
		}}},
	}
}

// TestComparisonCanFail breaks the sample in each way a fact can break.
func TestComparisonCanFail(t *testing.T) {
	type file = *descriptorpb.FileDescriptorProto
	for name, c := range map[string]struct {
		change func(file)
		want   string
	}{
		"same": {func(f file) {}, ""},
		"number": {
			func(f file) { f.MessageType[0].Field[0].Number = proto.Int32(9) },
			"missing: message a.v1.Thing field 1 id string singular\n" +
				"invented: message a.v1.Thing field 9 id string singular",
		},
		"name": {
			func(f file) { f.MessageType[0].Field[0].Name = proto.String("ident") },
			"differs: message a.v1.Thing field 1 id string singular\n     is: message a.v1.Thing field 1 ident string singular",
		},
		"type": {
			func(f file) { f.MessageType[0].Field[0].Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum() },
			"differs: message a.v1.Thing field 1 id string singular\n     is: message a.v1.Thing field 1 id bytes singular",
		},
		"list": {
			func(f file) {
				f.MessageType[0].Field[5].Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()
			},
			"differs: message a.v1.Thing field 6 names string repeated\n     is: message a.v1.Thing field 6 names string singular",
		},
		"enum value": {
			func(f file) { f.EnumType[0].Value = f.EnumType[0].Value[:1] },
			"missing: enum a.v1.State value 3 ON",
		},
		"stream": {
			func(f file) { f.Service[0].Method[0].ServerStreaming = proto.Bool(true) },
			"differs: service a.v1.Things method Get (a.v1.Thing) returns (a.v1.Thing) unary\n     is: service a.v1.Things method Get (a.v1.Thing) returns (a.v1.Thing) server-stream",
		},
		"service": {
			func(f file) { f.Service[0].Name = proto.String("Items") },
			"missing: service a.v1.Things\n" +
				"missing: service a.v1.Things method Get (a.v1.Thing) returns (a.v1.Thing) unary\n" +
				"missing: service a.v1.Things method Pull (a.v1.Thing) returns (a.v1.Thing) server-stream\n" +
				"missing: service a.v1.Things method Push (a.v1.Thing) returns (a.v1.Thing) client-stream\n" +
				"missing: service a.v1.Things method Talk (a.v1.Thing) returns (a.v1.Thing) bidi-stream",
		},
		"own message": {
			func(f file) {
				f.MessageType = append(f.MessageType, &descriptorpb.DescriptorProto{Name: proto.String("Own")})
			},
			"",
		},
	} {
		described := sample()
		c.change(described)
		file, err := protodesc.NewFile(described, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var files protoregistry.Files
		if err := files.RegisterFile(file); err != nil {
			t.Fatal(err)
		}
		want := readContract("# a comment\n\n" + strings.Join(sampleFacts, "\n"))
		if got := strings.Join(compare(want, factsOf(&files)), "\n"); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, c.want)
		}
	}
}
