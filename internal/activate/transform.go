package activate

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/mount"
)

// Types of mounts, and what may stand before one.
const (
	typeLoop = "loop"

	prefixFormat = "format"
	prefixMkfs   = "mkfs"
	prefixMkdir  = "mkdir"
)

// lastNeedy finds the last mount that needs something; -1 if none does.
func lastNeedy(mounts []mount.Mount) int {
	for i := len(mounts) - 1; i >= 0; i-- {
		head, _, prefixed := strings.Cut(mounts[i].Type, "/")
		if prefixed && slices.Contains([]string{prefixFormat, prefixMkfs, prefixMkdir}, head) || mounts[i].Type == typeLoop {
			return i
		}
	}
	return -1
}

// transform does what the prefixes of a mount's type ask for, from the left, and
// gives the mount without them.
func (p *Place) transform(ctx context.Context, m mount.Mount, before []Active) (mount.Mount, error) {
	m.Options = slices.Clone(m.Options)
	formatted := false
	for {
		head, rest, prefixed := strings.Cut(m.Type, "/")
		var err error
		switch {
		case !prefixed:
			// A source may name what was mounted before without a prefix: the device
			// of a loop has no name until it is there.
			if !formatted && strings.Contains(m.Source, "{{") {
				m.Source, err = fill(m.Source, before)
			}
			return m, err
		case head == prefixFormat:
			m, err = format(m, before)
			formatted = true
		case head == prefixMkdir:
			// What is to be made may be named by a template that is filled in later
			// in the list of prefixes.
			if !formatted {
				m, err = format(m, before)
			}
			if err == nil {
				m, err = p.mkdir(m, before)
			}
		case head == prefixMkfs:
			m, err = p.mkfs(ctx, m)
		default:
			err = fmt.Errorf("type %q: there is no handler %q: %w", m.Type, head, errdefs.ErrNotImplemented)
		}
		if err != nil {
			return m, err
		}
		m.Type = rest
	}
}

// format fills in the templates of a mount.
func format(m mount.Mount, before []Active) (mount.Mount, error) {
	var err error
	if m.Source, err = fill(m.Source, before); err != nil {
		return m, err
	}
	if m.Target, err = fill(m.Target, before); err != nil {
		return m, err
	}
	for i := range m.Options {
		if m.Options[i], err = fill(m.Options[i], before); err != nil {
			return m, err
		}
	}
	return m, nil
}

// maxFilled bounds a text with its templates filled in, in bytes.
const maxFilled = 1 << 20

// fill replaces every {{ WORD N... }} in text. Only these words are known; there
// is no other code in a template.
func fill(text string, before []Active) (string, error) {
	var out strings.Builder
	for {
		head, rest, found := strings.Cut(text, "{{")
		out.WriteString(head)
		if !found {
			return out.String(), nil
		}
		inner, tail, closed := strings.Cut(rest, "}}")
		if !closed {
			return "", fmt.Errorf("template %q does not end: %w", "{{"+rest, errdefs.ErrInvalidArgument)
		}
		value, err := word(strings.Fields(inner), before)
		if err != nil {
			return "", fmt.Errorf("template {{%s}}: %w: %w", inner, err, errdefs.ErrInvalidArgument)
		}
		out.WriteString(value)
		if text = tail; out.Len() > maxFilled {
			return "", fmt.Errorf("filled in it has more than %d bytes: %w", maxFilled, errdefs.ErrInvalidArgument)
		}
	}
}

// word gives the value of one template.
func word(fields []string, before []Active) (string, error) {
	if len(fields) == 0 {
		return "", fmt.Errorf("it is empty")
	}
	var at []int
	for _, field := range fields[1:] {
		n, err := strconv.Atoi(field)
		if err != nil || n < 0 || n >= len(before) {
			return "", fmt.Errorf("%q is not the number of one of the %d mounts before", field, len(before))
		}
		at = append(at, n)
	}
	if want := map[string]int{"source": 1, "target": 1, "mount": 1, "overlay": 2}[fields[0]]; want == 0 {
		return "", fmt.Errorf("there is no %q; there are source, target, mount and overlay", fields[0])
	} else if len(at) != want {
		return "", fmt.Errorf("%s takes %d numbers, not %d", fields[0], want, len(at))
	}
	switch fields[0] {
	case "source":
		return before[at[0]].Mount.Source, nil
	case "target":
		return before[at[0]].Mount.Target, nil
	case "mount":
		return before[at[0]].Point, nil
	}
	// The layers from the first to the second number, which may be the lower one.
	step := 1
	if at[0] > at[1] {
		step = -1
	}
	var dirs []string
	for i := at[0]; ; i += step {
		dirs = append(dirs, strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(before[i].Point))
		if i == at[1] {
			return strings.Join(dirs, ":"), nil
		}
	}
}

// take takes the options with a prefix out of a mount, as KEY=VALUE without it.
func take(m mount.Mount, prefix string) (mount.Mount, []string) {
	var rest, taken []string
	for _, option := range m.Options {
		if value, ok := strings.CutPrefix(option, prefix); ok {
			taken = append(taken, value)
		} else {
			rest = append(rest, option)
		}
	}
	m.Options = rest
	return m, taken
}

// below gives the one of roots that path lies under, and the rest of it. The
// path is looked up within that root, so that no link in it leads out.
func below(roots []string, path string) (root, rest string, err error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", "", fmt.Errorf("%q is not a clean absolute path: %w", path, errdefs.ErrInvalidArgument)
	}
	for _, root := range roots {
		if rest, ok := strings.CutPrefix(path, strings.TrimSuffix(root, "/")+"/"); ok && rest != "" {
			return root, rest, nil
		}
	}
	return "", "", fmt.Errorf("%q lies in none of the directories where this may be done: %q: %w", path, roots, errdefs.ErrPermissionDenied)
}

// roots are the directories in which things may be made: the mounts before,
// whose files may be an image's, so that no link in them leads out; and those of
// the configuration.
func (p *Place) roots(before []Active) []string {
	var roots []string
	for _, a := range before {
		if a.Mount.Type != typeLoop {
			roots = append(roots, a.Point)
		}
	}
	if len(p.Roots) == 0 {
		return append(roots, "/")
	}
	return append(roots, p.Roots...)
}
