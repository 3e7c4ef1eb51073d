package filter

import (
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

type vectors struct {
	Parse []struct {
		Filter    string
		Valid     bool
		Selectors []struct {
			Op    string
			Path  []string
			Value string
		}
	}
	Match struct {
		Object map[string]string
		Cases  []struct {
			Filters []string
			Match   bool
			Parse   string
		}
	}
}

func load(t testing.TB) vectors {
	data, err := os.ReadFile("testdata/filters.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Parse) < 50 || len(v.Match.Cases) < 20 {
		t.Fatalf("vectors: only %d and %d", len(v.Parse), len(v.Match.Cases))
	}
	return v
}

// object is one whose fields are found by their joined path.
func object(fields map[string]string) Adaptor {
	return AdaptorFunc(func(path []string) (string, bool) {
		value, ok := fields[strings.Join(path, ".")]
		return value, ok
	})
}

func TestParseVectors(t *testing.T) {
	for _, c := range load(t).Parse {
		selectors, err := parse(c.Filter)
		if (err == nil) != c.Valid {
			t.Errorf("%q: error %v, want valid %v", c.Filter, err, c.Valid)
			continue
		}
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v is not invalid argument", c.Filter, err)
			}
			continue
		}
		var got, want []selector
		for _, s := range selectors {
			got = append(got, selector{path: s.path, op: s.op, value: s.value})
		}
		for _, s := range c.Selectors {
			want = append(want, selector{path: s.Path, op: operator(s.Op), value: s.Value})
		}
		sameExpr := cmp.Comparer(func(a, b *regexp.Regexp) bool { return a == b })
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(selector{}), sameExpr); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.Filter, diff)
		}
	}
}

func TestMatchVectors(t *testing.T) {
	v := load(t).Match
	for _, c := range v.Cases {
		f, err := ParseAll(c.Filters...)
		if c.Parse != "ok" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v, want %s", c.Filters, err, c.Parse)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.Filters, err)
			continue
		}
		if got := f.Match(object(v.Object)); got != c.Match {
			t.Errorf("%q: match %v, want %v", c.Filters, got, c.Match)
		}
	}
}

// TestGrammar has what the vectors leave open.
func TestGrammar(t *testing.T) {
	for text, valid := range map[string]bool{
		"name ":                       false,
		"name ,id":                    false,
		"a .b":                        false,
		"a. b":                        true,
		"a,  b":                       true,
		"name== \t x":                 true,
		"a\"b\"":                      false,
		"\"a\"b":                      false,
		"name==\"a\nb\"":              false,
		"name~=|a[.]b|":               true,
		`name~=|a\.b|`:                false,
		`name~=/a|b/`:                 true,
		`name=="\'"`:                  false,
		`name=="\xff"`:                true,
		"name==\xff":                  false,
		"name==\ufffd":                false,
		"name==~x":                    false,
		" ":                           false,
		"name~=|(a|":                  true, // unbalanced, but a value
		strings.Repeat("a", 64<<10):   true,
		strings.Repeat("a", 64<<10+1): false,
	} {
		if _, err := Parse(text); (err == nil) != valid {
			t.Errorf("%.40q: error %v, want valid %v", text, err, valid)
		}
	}
}

func TestError(t *testing.T) {
	_, err := ParseAll("ok", "name=foo")
	want := `filter "name=foo": at byte 4: expected one of "==", "!=", "~=": invalid argument`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = Parse(strings.Repeat("-", MaxLength))
	if err == nil || len(err.Error()) > 500 {
		t.Errorf("error of a long filter: %d bytes", len(err.Error()))
	}
}

// FuzzParse: no text makes the parser fail otherwise than with an error, and
// what it reads can be written down, quoted, and read again.
func FuzzParse(f *testing.F) {
	for _, c := range load(f).Parse {
		f.Add(c.Filter)
	}
	anything := object(map[string]string{"name": "x"})
	f.Fuzz(func(t *testing.T, text string) {
		selectors, err := parse(text)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		all(selectors).Match(anything)
		again, err := parse(write(selectors))
		if len(write(selectors)) > MaxLength {
			return
		}
		if err != nil {
			t.Fatalf("%q, written %q: %v", text, write(selectors), err)
		}
		if write(again) != write(selectors) {
			t.Fatalf("%q: written %q, read and written %q", text, write(selectors), write(again))
		}
	})
}

// write gives the filter with everything quoted.
func write(selectors []selector) string {
	var parts []string
	for _, s := range selectors {
		var fields []string
		for _, field := range s.path {
			fields = append(fields, strconv.Quote(field))
		}
		part := strings.Join(fields, ".")
		if s.op != present {
			part += string(s.op) + strconv.Quote(s.value)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ",")
}

func BenchmarkMatch(b *testing.B) {
	f, err := ParseAll("namespace==moby,topic~=|^/tasks/|")
	if err != nil {
		b.Fatal(err)
	}
	o := object(map[string]string{"namespace": "moby", "topic": "/tasks/exit"})
	for b.Loop() {
		f.Match(o)
	}
}
