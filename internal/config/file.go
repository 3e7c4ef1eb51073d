package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"sort"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// maxSize bounds, in bytes, what is read of a file.
const maxSize = 1 << 20

// Load gives the configuration that the file at path makes of the defaults,
// not yet completed or checked: flags may still override it. An empty path
// means DefaultPath, which may be missing.
func Load(path string) (Config, error) {
	optional := path == ""
	if optional {
		path = DefaultPath
	}
	f, err := os.Open(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	if len(text) > maxSize {
		return Config{}, fmt.Errorf("configuration %s is larger than %d bytes: %w", path, maxSize, errdefs.ErrInvalidArgument)
	}
	return Parse(path, text)
}

// Parse reads the text of a file over the defaults. name stands in its errors,
// which have the line of what is wrong.
func Parse(name string, text []byte) (Config, error) {
	c := Default()
	dec := toml.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(&c)
	if err == nil {
		return c, nil
	}
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		return Config{}, unknownKeys(name, unknown)
	}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		row, col := wrong.Position()
		return Config{}, fmt.Errorf("configuration %s:%d:%d: %s: %w",
			name, row, col, strings.TrimPrefix(wrong.Error(), "toml: "), errdefs.ErrInvalidArgument)
	}
	return Config{}, fmt.Errorf("configuration %s: %s: %w", name, strings.TrimPrefix(err.Error(), "toml: "), errdefs.ErrInvalidArgument)
}

// unknownKeys names every unknown key with its line, and the keys that would
// have been known there.
func unknownKeys(name string, unknown *toml.StrictMissingError) error {
	var lines []string
	for i := range unknown.Errors {
		e := &unknown.Errors[i]
		row, _ := e.Position()
		key := e.Key()
		where := "at the top"
		if len(key) > 1 {
			where = "in [" + strings.Join(key[:len(key)-1], ".") + "]"
		}
		line := fmt.Sprintf("configuration %s:%d: unknown key %q", name, row, strings.Join(key, "."))
		if known := keysAt(reflect.TypeFor[Config](), key[:max(0, len(key)-1)]); len(known) > 0 {
			line += fmt.Sprintf(" (known %s: %s)", where, strings.Join(known, ", "))
		}
		lines = append(lines, line)
	}
	return fmt.Errorf("%s; `berthd config default` prints every key with its meaning: %w",
		strings.Join(lines, "; "), errdefs.ErrInvalidArgument)
}

// keysAt lists the keys of the table at path, sorted; nil if there is no such
// table.
func keysAt(t reflect.Type, path []string) []string {
	if t.Kind() != reflect.Struct {
		return nil
	}
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		key := tomlName(f)
		switch {
		case len(path) == 0 || key != path[0]:
		case f.Type.Kind() == reflect.Map && len(path) > 1: // a table with names of the user's own
			return keysAt(f.Type.Elem(), path[2:])
		default:
			return keysAt(f.Type, path[1:])
		}
		keys = append(keys, key)
	}
	if len(path) > 0 {
		return nil
	}
	sort.Strings(keys)
	return keys
}

// tomlName is the key of a field.
func tomlName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
	return name
}

// Write writes the configuration as a file that Load reads back to the same
// values, with a comment for every key.
func (c Config) Write(w io.Writer) error {
	enc := toml.NewEncoder(w)
	enc.SetIndentTables(false)
	if err := enc.Encode(c); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}
