package mount

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// refused is an error of a file system context: with what the kernel has to
// say about it, which mount(2) only writes to the kernel's log.
func refused(fs int, what string, err error) error {
	if reason := messages(fs); reason != "" {
		return fmt.Errorf("%s: %w (%s)", what, err, reason)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// messages reads what the kernel noted on a file system context.
func messages(fs int) string {
	var all []string
	buf := make([]byte, 1024)
	for range 16 {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		// "e ", "w " or "i " for error, warning, information.
		text := strings.TrimSpace(string(buf[:n]))
		if _, rest, ok := strings.Cut(text, " "); ok {
			text = rest
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// explained adds to an error of mount(2) why the kernel refused an overlay.
func explained(err error, source string, o options) error {
	if err == nil {
		return nil
	}
	if reason := explain("overlay", source, o.data); reason != "" {
		return fmt.Errorf("%w (%s)", err, reason)
	}
	return err
}

// explain finds out why mount(2) refused an overlay: it asks again through the
// mount API, without mounting, and returns the kernel's own words. A kernel that
// has none there is guessed at. "" if nothing is known.
func explain(fstype, source string, data []string) string {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return guess(data)
	}
	defer unix.Close(fs)
	if takesAnything(fs) {
		return guess(data)
	}
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return messages(fs)
	}
	for _, option := range data {
		if err := configure(fs, option); err != nil {
			return err.Error()
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return messages(fs)
	}
	return ""
}

// guess looks for what overlay is known to refuse.
func guess(data []string) string {
	var others []string
	for _, option := range data {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "lowerdir":
			for _, dir := range splitLayers(value) {
				if reason := unfit(dir); reason != "" {
					return "lower directory: " + reason
				}
			}
		case "upperdir", "workdir":
			dir := unescape(value)
			if reason := unfit(dir); reason != "" {
				return key + ": " + reason
			}
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
				return fmt.Sprintf("%s: %s is in an overlay, which can't be the upper layer of another", key, dir)
			}
		default:
			others = append(others, option)
		}
	}
	return fmt.Sprintf("the kernel's log may tell why (dmesg); options: %s", strings.Join(others, ","))
}

// unfit tells why a directory can't be used; "" if it can.
func unfit(dir string) string {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Sprintf("%s: %v", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Sprintf("%s is no directory", dir)
	}
	return ""
}
