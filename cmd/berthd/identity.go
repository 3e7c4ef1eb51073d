package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/berthd/berth/internal/durable"
)

// uuidFile is the name of the file under root that makes a daemon known again.
const uuidFile = "uuid"

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// identity reads the daemon's UUID, which it makes at the first start and never
// changes: clients take it for who the daemon is.
func identity(root string) (string, error) {
	path := filepath.Join(root, uuidFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		id := newUUID()
		if err := durable.WriteFile("uuid", path, []byte(id+"\n"), 0o644); err != nil {
			return "", fmt.Errorf("make the daemon's identity: %w", err)
		}
		return id, nil
	}
	if err != nil {
		return "", fmt.Errorf("read the daemon's identity: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return "", fmt.Errorf("read the daemon's identity: %w", err)
	}
	id := strings.TrimSpace(string(text))
	if !uuidForm.MatchString(id) {
		return "", fmt.Errorf("read the daemon's identity: %s holds %q, which is no UUID; restore it, or remove it to get a new one", path, id)
	}
	return id, nil
}

// newUUID makes a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
