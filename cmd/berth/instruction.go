package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// instructions change what an image says of containers, as those of a Dockerfile of
// the same names do. rest is what stands after the name.
var instructions = map[string]func(c *imagespec.ImageConfig, rest string) error{
	"CMD": func(c *imagespec.ImageConfig, rest string) (err error) { c.Cmd, err = command(rest); return err },
	"ENTRYPOINT": func(c *imagespec.ImageConfig, rest string) (err error) {
		c.Entrypoint, err = command(rest)
		return err
	},
	"ENV": func(c *imagespec.ImageConfig, rest string) error {
		return assignments(rest, func(key, value string) { c.Env = setVariable(c.Env, key, value) })
	},
	"LABEL": func(c *imagespec.ImageConfig, rest string) error {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		return assignments(rest, func(key, value string) { c.Labels[key] = value })
	},
	"EXPOSE": func(c *imagespec.ImageConfig, rest string) error {
		for _, port := range strings.Fields(rest) {
			if c.ExposedPorts == nil {
				c.ExposedPorts = map[string]struct{}{}
			}
			if !strings.Contains(port, "/") {
				port += "/tcp"
			}
			c.ExposedPorts[port] = struct{}{}
		}
		return nil
	},
	"VOLUME": func(c *imagespec.ImageConfig, rest string) error {
		paths, err := words(rest)
		for _, path := range paths {
			if c.Volumes == nil {
				c.Volumes = map[string]struct{}{}
			}
			c.Volumes[path] = struct{}{}
		}
		return err
	},
	"USER":       func(c *imagespec.ImageConfig, rest string) error { c.User = rest; return nil },
	"WORKDIR":    func(c *imagespec.ImageConfig, rest string) error { return workdir(c, rest) },
	"STOPSIGNAL": func(c *imagespec.ImageConfig, rest string) error { c.StopSignal = rest; return nil },
}

// instruct gives what changes an image as the given instructions say.
func instruct(lines []string) (func(*imagespec.ImageConfig) error, error) {
	change := func(c *imagespec.ImageConfig) error {
		for _, line := range lines {
			name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			do, known := instructions[strings.ToUpper(name)]
			if !known {
				return fmt.Errorf("--change %q: want CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR first", line)
			}
			if rest = strings.TrimSpace(rest); rest == "" {
				return fmt.Errorf("--change %q: nothing stands after %s", line, name)
			}
			if err := do(c, rest); err != nil {
				return fmt.Errorf("--change %q: %w", line, err)
			}
		}
		return nil
	}
	// What is wrong with them shows on any image.
	return change, change(&imagespec.ImageConfig{})
}

func workdir(c *imagespec.ImageConfig, path string) error {
	if !strings.HasPrefix(path, "/") {
		return errors.New("the path has to be absolute")
	}
	c.WorkingDir = path
	return nil
}

// command reads a command: a JSON list of its words, or a line for the shell.
func command(text string) ([]string, error) {
	if strings.HasPrefix(text, "[") {
		return words(text)
	}
	return []string{"/bin/sh", "-c", text}, nil
}

// words reads a JSON list of strings, or words with space between.
func words(text string) (list []string, err error) {
	if !strings.HasPrefix(text, "[") {
		return strings.Fields(text), nil
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("want a JSON list of strings: %w", err)
	}
	return list, nil
}

// assignments reads KEY=VALUE, several with space between; a value may be quoted, and
// a backslash takes the meaning from the character after it. KEY VALUE is one, too.
func assignments(text string, set func(key, value string)) error {
	key, value, ok := strings.Cut(text, " ")
	if ok && !strings.Contains(key, "=") {
		set(key, strings.TrimSpace(value))
		return nil
	}
	for text != "" {
		part, rest, err := shellWord(text)
		if err != nil {
			return err
		}
		key, value, ok := strings.Cut(part, "=")
		if !ok || key == "" {
			return fmt.Errorf("%q is not KEY=VALUE", part)
		}
		set(key, value)
		text = strings.TrimLeft(rest, " \t")
	}
	return nil
}

// shellWord takes the first word off a text, without its quotes.
func shellWord(text string) (word, rest string, err error) {
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && quote != '\'' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && (c == ' ' || c == '\t'):
			return b.String(), text[i:], nil
		default:
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", "", fmt.Errorf("a %c has no end", quote)
	}
	return b.String(), "", nil
}

// setVariable sets a variable of an environment.
func setVariable(env []string, key, value string) []string {
	for i, one := range env {
		if strings.HasPrefix(one, key+"=") {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}
