package main

import "testing"

func TestOwnVersion(t *testing.T) {
	for answer, want := range map[string][2]string{
		"2.3.4+berth.v0.1.0": {"v0.1.0", "2.3.4"},
		"2.3.4+berth.v0.0.0-20260504030201-0123456789ab-x": {"v0.0.0-20260504030201-0123456789ab-x", "2.3.4"},
		"1.6.20~ds1":     {"", "1.6.20~ds1"},
		"v2.3.4+unknown": {"", "v2.3.4+unknown"},
	} {
		if own, api := ownVersion(answer); own != want[0] || api != want[1] {
			t.Errorf("%q: own %q, API %q, want %q", answer, own, api, want)
		}
	}
}
