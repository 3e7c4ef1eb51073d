package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	maxFileLines = 450
	maxFuncLines = 80
)

// longFuncs are functions that may be longer, and why.
var longFuncs = map[string]string{
	"cmd/berthd/build.go build": "the object graph is one function that reads like the drawing of it",
}

// inits are the functions of that name outside generated code, each with its
// reason.
var inits = map[string]string{
	"internal/sys/thread_test.go": "a process whose first thread ends: nothing else is sure to run on that thread",
}

// source is one file of the repository.
type source struct {
	path string // from the repository's root, with slashes
	text []byte
}

func (s source) inModule() bool {
	return !strings.HasPrefix(s.path, "bench/") && !strings.HasPrefix(s.path, "test/")
}
func (s source) isGo() bool     { return strings.HasSuffix(s.path, ".go") }
func (s source) isTest() bool   { return strings.HasSuffix(s.path, "_test.go") }
func (s source) testdata() bool { return strings.Contains(s.path, "testdata/") }

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

func (s source) isGenerated() bool { return generated.Match(s.text) }

// finding is a place that breaks a rule.
func (s source) finding(line int, format string, args ...any) string {
	return fmt.Sprintf("%s:%d: %s", s.path, line, fmt.Sprintf(format, args...))
}

// sources reads every text file of the repository.
func sources(t *testing.T) []source {
	t.Helper()
	const root = "../.."
	var list []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{".git", ".tools", "bin"}, rel) {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil && !bytes.ContainsRune(text, 0) {
			list = append(list, source{filepath.ToSlash(rel), text})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 100 {
		t.Fatalf("only %d files found", len(list))
	}
	return list
}

// Words that must not be found are written in two parts, so that this file does
// not hold them.
var (
	unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`)
	elsewhere  = regexp.MustCompile(`(\.\./|/work/)shared\b`)
)

// checkText reports unfinished work and what a clone would not have.
func checkText(s source) []string {
	var report []string
	number := 0
	for line := range bytes.Lines(s.text) {
		number++
		if found := elsewhere.Find(line); found != nil {
			report = append(report, s.finding(number, "%q is not part of the repository", found))
		}
		if found := unfinished.Find(line); found != nil && !s.testdata() {
			report = append(report, s.finding(number, "%s: finish it, or open an issue", found))
		}
	}
	return report
}

// steps are the calls that make bytes and names survive. They belong to
// internal/durable, where the order of writes is read and broken by tests.
var steps = map[string]*regexp.Regexp{
	"os":                         regexp.MustCompile(`^Rename$`),
	"golang.org/x/sys/unix":      regexp.MustCompile(`^(Rename.*|Sync|Syncfs|SyncFileRange|Fsync|Fdatasync)$`),
	"syscall":                    regexp.MustCompile(`^(Rename.*|Sync|SyncFileRange|Fsync|Fdatasync)$`),
	"io/ioutil":                  regexp.MustCompile(`.`),
	"github.com/google/renameio": regexp.MustCompile(`.`),
}

// checkGo reports what only a parser can see.
func checkGo(s source) []string {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, s.path, s.text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return []string{err.Error()}
	}
	var report []string
	line := func(n ast.Node) int { return files.Position(n.Pos()).Line }
	for _, decl := range file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			if inits[s.path] != "" {
				continue
			}
			report = append(report, s.finding(line(f), "func init: wiring is one build function, read from top to bottom"))
		}
	}
	if s.isTest() || !s.inModule() {
		return report
	}
	report = append(report, checkSizes(s, files, file)...)
	report = append(report, checkDocs(s, files, file)...)
	if strings.HasPrefix(s.path, "internal/durable/") {
		return report
	}
	names := importNames(file)
	ast.Inspect(file, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if left, ok := selector.X.(*ast.Ident); ok {
			if step := steps[names[left.Name]]; step != nil && step.MatchString(selector.Sel.Name) {
				report = append(report, s.finding(line(n), "%s.%s: durable steps go through internal/durable", left.Name, selector.Sel.Name))
			}
		}
		return true
	})
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) > 0 {
			return true
		}
		if selector, ok := call.Fun.(*ast.SelectorExpr); ok && selector.Sel.Name == "Sync" {
			report = append(report, s.finding(line(n), "Sync(): durable steps go through internal/durable"))
		}
		return true
	})
	return report
}

// importNames gives the path that each name of an import stands for.
func importNames(file *ast.File) map[string]string {
	names := map[string]string{}
	for _, spec := range file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		name := path[strings.LastIndexByte(path, '/')+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = path
	}
	return names
}

func checkSizes(s source, files *token.FileSet, file *ast.File) []string {
	var report []string
	if lines := files.File(file.Pos()).LineCount(); lines > maxFileLines {
		report = append(report, s.finding(1, "%d lines: a file is read in one sitting, at most %d", lines, maxFileLines))
	}
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		first, last := files.Position(f.Pos()).Line, files.Position(f.End()).Line
		if n := last - first + 1; n > maxFuncLines && longFuncs[s.path+" "+f.Name.Name] == "" {
			report = append(report, s.finding(first, "func %s has %d lines: a function reads on one screen, at most %d", f.Name.Name, n, maxFuncLines))
		}
	}
	return report
}

// selfEvident are methods whose meaning is that of an interface everyone knows.
var selfEvident = map[string]bool{"String": true, "Error": true, "Unwrap": true}

// checkDocs reports exported names that don't say what they are. A method needs
// a comment unless its receiver is not exported; a name in a group may share the
// group's.
func checkDocs(s source, files *token.FileSet, file *ast.File) []string {
	var report []string
	want := func(name *ast.Ident, docs ...*ast.CommentGroup) {
		if !name.IsExported() || slices.ContainsFunc(docs, func(d *ast.CommentGroup) bool { return d != nil }) {
			return
		}
		report = append(report, s.finding(files.Position(name.Pos()).Line, "%s has no comment: exported names say what they are", name.Name))
	}
	for _, decl := range file.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			if decl.Recv == nil || exportedReceiver(decl.Recv) && !selfEvident[decl.Name.Name] {
				want(decl.Name, decl.Doc)
			}
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					want(spec.Name, spec.Doc, decl.Doc)
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						want(name, spec.Doc, spec.Comment, decl.Doc)
					}
				}
			}
		}
	}
	return report
}

func exportedReceiver(fields *ast.FieldList) bool {
	t := fields.List[0].Type
	for {
		switch inner := t.(type) {
		case *ast.StarExpr:
			t = inner.X
		case *ast.IndexExpr:
			t = inner.X
		case *ast.IndexListExpr:
			t = inner.X
		case *ast.Ident:
			return inner.IsExported()
		default:
			return false
		}
	}
}

func TestSource(t *testing.T) {
	for _, s := range sources(t) {
		report := checkText(s)
		if s.isGo() && !s.isGenerated() && !s.testdata() {
			report = append(report, checkGo(s)...)
		}
		for _, line := range report {
			t.Error(line)
		}
	}
}

func TestSourceFindings(t *testing.T) {
	head := "package p\n\nimport (\n\t\"os\"\n\tu \"golang.org/x/sys/unix\"\n)\n\n"
	for name, c := range map[string]struct {
		path, text string
		want       []string
	}{
		"clean":          {"p/p.go", head + "func f() { os.Remove(u.GetX()) }\n", nil},
		"init":           {"p/p_test.go", "package p\n\nfunc init() {}\n", []string{"p/p_test.go:3: func init"}},
		"method":         {"p/p.go", "package p\n\nfunc (t) init() {}\n", nil},
		"rename":         {"p/p.go", head + "func f() { os.Rename(a, b) }\n", []string{"p/p.go:8: os.Rename: durable steps"}},
		"as value":       {"p/p.go", head + "var f = os.Rename\n", []string{"p/p.go:8: os.Rename"}},
		"alias":          {"p/p.go", head + "func f() { u.Renameat2(1); u.Syncfs(2) }\n", []string{"u.Renameat2", "u.Syncfs"}},
		"file sync":      {"p/p.go", head + "func f(x *os.File) { x.Sync() }\n", []string{"p/p.go:8: Sync(): durable"}},
		"durable":        {"internal/durable/d.go", head + "func f() { os.Rename(a, b) }\n", nil},
		"in a test":      {"p/p_test.go", head + "func f() { os.Rename(a, b) }\n", nil},
		"other module":   {"bench/x.go", head + "func f() { os.Rename(a, b) }\n", nil},
		"broken":         {"p/p.go", "package", []string{"p/p.go:1"}},
		"long file":      {"p/p.go", "package p\n" + strings.Repeat("\n", maxFileLines), []string{"p/p.go:1: 451 lines"}},
		"meant to be":    {"cmd/berthd/build.go", "package p\n\nfunc build() {" + strings.Repeat("\n", maxFuncLines) + "}\n", nil},
		"long function":  {"p/p.go", "package p\n\nfunc f() {" + strings.Repeat("\n", maxFuncLines) + "}\n", []string{"p/p.go:3: func f has 81 lines"}},
		"documented":     {"p/p.go", "package p\n\n// A is.\nfunc A() {}\n\nfunc (b) C() {}\n\nconst D = 1 // is\n\n// All.\nvar (\n\tE = 1\n)\n", nil},
		"undocumented":   {"p/p.go", "package p\n\nfunc A() {}\n\ntype B[T any] struct{}\n\nfunc (b *B[T]) C() {}\n\nvar D = 1\n", []string{"p/p.go:3: A has", "p.go:5: B has", "p.go:7: C has", "p.go:9: D has"}},
		"unfinished":     {"docs/a.md", "a\nTO" + "DO: b\n", []string{"docs/a.md:2: TO" + "DO: finish it"}},
		"part of a word": {"docs/a.md", "a mas" + "TO" + "DON\n", nil},
		"in test data":   {"p/testdata/a", "FIX" + "ME\n", nil},
		"elsewhere":      {"p/testdata/a", "see ../" + "shared/x\n", []string{"is not part of the repository"}},
	} {
		s := source{c.path, []byte(c.text)}
		report := checkText(s)
		if s.isGo() {
			report = append(report, checkGo(s)...)
		}
		if len(report) != len(c.want) {
			t.Errorf("%s: %q, want %q", name, report, c.want)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(report[i], want) {
				t.Errorf("%s: %q, want %q", name, report[i], want)
			}
		}
	}
	text := "// Code generated by x. DO NOT EDIT.\npackage p\nfunc init() {}\n"
	if s := (source{"p/p.go", []byte(text)}); !s.isGenerated() {
		t.Error("generated code is not known")
	}
}
