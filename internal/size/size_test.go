package size

import "testing"

func TestParse(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "1KiB": 1024, "1K": 1024, "10GiB": 10 << 30, "10 GB": 1e10, "5B": 5,
		"": -1, "GiB": -1, "-1": -1, "1.5GiB": -1, "9999999999TiB": -1, "1X": -1,
	} {
		got, err := Parse(text)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
}
