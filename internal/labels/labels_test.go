package labels

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/labels.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Labels []struct {
			Key    int `json:"key_bytes"`
			Value  int `json:"value_bytes"`
			Result string
		}
	}
	if err := json.Unmarshal(data, &v); err != nil || len(v.Labels) == 0 {
		t.Fatalf("vectors: %v, %d", err, len(v.Labels))
	}
	for _, c := range v.Labels {
		key, value := strings.Repeat("k", c.Key), strings.Repeat("v", c.Value)
		for _, err := range []error{ValidateOne(key, value), Validate(map[string]string{"a": "b", key: value})} {
			got := "ok"
			if errdefs.IsInvalidArgument(err) {
				got = "invalid_argument"
			} else if err != nil {
				got = err.Error()
			}
			if got != c.Result {
				t.Errorf("%d+%d bytes: %s, want %s", c.Key, c.Value, got, c.Result)
			}
			if err != nil && len(err.Error()) > 200 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		}
	}
}
