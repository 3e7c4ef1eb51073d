// Package size owns how numbers of bytes are spelled.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// units are what a size may end in, with the longest first where one ends
// another.
var units = []struct {
	suffix string
	bytes  uint64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"B", 1},
}

// Parse reads a number of bytes: "1073741824", "1GiB", "1G" (the same), or
// "1GB" (a thousand million). InvalidArgument.
func Parse(text string) (int64, error) {
	number, unit := strings.TrimSpace(text), uint64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is not a size, such as 512MiB or 10GiB: %w", text, errdefs.ErrInvalidArgument)
	}
	return int64(n * unit), nil
}
