package names

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

type vectors struct {
	Identifiers []struct{ ID, Result string }
	Topics      []struct{ Topic, Result string }
	Namespaces  []struct {
		Namespace string // null, no header at all, reads as empty too
		Result    string
	} `json:"namespace_of_request"`
}

func load(t *testing.T) vectors {
	data, err := os.ReadFile("testdata/identifiers.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Identifiers) == 0 || len(v.Topics) == 0 || len(v.Namespaces) == 0 {
		t.Fatal("vectors are empty")
	}
	return v
}

// kind names the error's kind as the vectors do.
func kind(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errdefs.IsInvalidArgument(err):
		return "invalid_argument"
	case errdefs.IsFailedPrecondition(err):
		return "failed_precondition"
	}
	return err.Error()
}

func TestVectors(t *testing.T) {
	v := load(t)
	for _, c := range v.Identifiers {
		if got := kind(Identifier(c.ID)); got != c.Result {
			t.Errorf("identifier %q: %s, want %s", c.ID, got, c.Result)
		}
	}
	for _, c := range v.Topics {
		if got := kind(Topic(c.Topic)); got != c.Result {
			t.Errorf("topic %q: %s, want %s", c.Topic, got, c.Result)
		}
	}
	for _, c := range v.Namespaces {
		if got := kind(Namespace(c.Namespace)); got != c.Result {
			t.Errorf("namespace %q: %s, want %s", c.Namespace, got, c.Result)
		}
	}
}

func TestTexts(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for want, err := range map[string]error{
		`namespace is required: failed precondition`:                                      Namespace(""),
		`identifier "a..b" must not start with a separator`:                               Identifier("a..b"),
		`topic "/a//b": component "" is empty: invalid argument`:                          Topic("/a//b"),
		`topic "a" must start with "/": invalid argument`:                                 Topic("a"),
		`identifier "` + long[:2*MaxLength] + `"... is longer than 76 bytes: invalid arg`: Identifier(long),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s...", err, want)
		}
	}
}

// FuzzIdentifier holds the loop to the expression that the contract gives.
func FuzzIdentifier(f *testing.F) {
	contract := regexp.MustCompile(`\A[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*\z`)
	for _, seed := range []string{"", "a", "a.b", "a..b", "-", "a-", "\xff", strings.Repeat("a", 77)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		want := len(id) <= MaxLength && contract.MatchString(id)
		if got := Identifier(id) == nil; got != want {
			t.Errorf("%q: accepted %v, contract says %v", id, got, want)
		}
		if topic := Topic("/" + id); !strings.Contains(id, "/") && (topic == nil) != want {
			t.Errorf("topic /%q: %v, as an identifier %v", id, topic, want)
		}
	})
}
