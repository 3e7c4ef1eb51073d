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

// explain finds out why mount(2) refused: it asks again through the mount API,
// without mounting, and returns the kernel's own words. "" if there are none.
func explain(fstype, source string, data []string) string {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return ""
	}
	defer unix.Close(fs)
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
