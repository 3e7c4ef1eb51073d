package filter

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// MaxLength is how many bytes one filter may have. Far above what clients
// write; it bounds the work that one call can ask for.
const MaxLength = 64 << 10

// end is what peek gives behind the last character.
const end rune = -1

// parser reads a text from left to right and never goes back.
type parser struct {
	text string
	pos  int
}

// fault is a mistake in a filter's text.
type fault struct {
	pos  int
	what string
}

func (f *fault) Error() string { return fmt.Sprintf("at byte %d: %s", f.pos, f.what) }

func parse(text string) ([]selector, error) {
	if len(text) > MaxLength {
		return nil, fmt.Errorf("filter of %d bytes: more than %d: %w", len(text), MaxLength, errdefs.ErrInvalidArgument)
	}
	p := &parser{text: text}
	selectors, err := p.filter()
	if err != nil {
		return nil, fmt.Errorf("filter %q: %w: %w", shorten(text), err, errdefs.ErrInvalidArgument)
	}
	return selectors, nil
}

func shorten(text string) string {
	const shown = 256
	if len(text) > shown {
		return text[:shown] + "..."
	}
	return text
}

func (p *parser) filter() ([]selector, error) {
	if p.text == "" {
		return nil, nil
	}
	var selectors []selector
	for {
		s, err := p.selector()
		if err != nil {
			return nil, err
		}
		selectors = append(selectors, s)
		switch p.peek() {
		case end:
			return selectors, nil
		case ',':
			p.pos++
		default:
			return nil, p.wrong("expected a comma or the end after a value")
		}
	}
}

func (p *parser) selector() (selector, error) {
	path, err := p.path()
	if err != nil {
		return selector{}, err
	}
	if next := p.peek(); next == ',' || next == end {
		return selector{path: path, op: present}, nil
	}
	op, err := p.operator()
	if err != nil {
		return selector{}, err
	}
	s := selector{path: path, op: op}
	if s.value, err = p.value(op == matches); err != nil {
		return selector{}, err
	}
	if op == matches {
		s.expr, _ = regexp.Compile(s.value) // nil never matches: the contract has no error here
	}
	return s, nil
}

func (p *parser) path() ([]string, error) {
	var path []string
	for {
		field, err := p.field()
		if err != nil {
			return nil, err
		}
		path = append(path, field)
		if p.peek() != '.' {
			return path, nil
		}
		p.pos++
	}
}

func (p *parser) field() (string, error) {
	p.space()
	if p.peek() == '"' {
		return p.quoted()
	}
	start := p.pos
	for p.pos < len(p.text) && fieldByte(p.text[p.pos]) {
		p.pos++
	}
	if p.pos == start {
		return "", p.wrong("expected a field")
	}
	return p.text[start:p.pos], nil
}

func fieldByte(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

func (p *parser) operator() (operator, error) {
	p.space()
	for _, op := range []operator{equal, notEqual, matches} {
		if strings.HasPrefix(p.text[p.pos:], string(op)) {
			p.pos += len(op)
			return op, nil
		}
	}
	return "", p.wrong(`expected one of "==", "!=", "~="`)
}

// value reads what stands right of an operator. An expression may be quoted
// with slashes and bars too, so that its quotes need no escape.
func (p *parser) value(expression bool) (string, error) {
	p.space()
	switch next := p.peek(); {
	case next == '"', expression && (next == '/' || next == '|'):
		return p.quoted()
	case next == end:
		return "", p.wrong("expected a value")
	case strings.ContainsRune(`/|.,=!~`, next):
		return "", p.wrong(fmt.Sprintf("a value that starts with %q must be quoted with \"", next))
	}
	start := p.pos
	for next := p.peek(); valueRune(next); next = p.peek() {
		p.pos += utf8.RuneLen(next)
	}
	if p.pos == start {
		return "", p.wrong("expected a value")
	}
	return p.text[start:p.pos], nil
}

func valueRune(r rune) bool {
	return r != ',' && r != utf8.RuneError &&
		(unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsPunct(r) || unicode.IsSymbol(r))
}

// quoted reads up to the next character equal to the one it stands at.
func (p *parser) quoted() (string, error) {
	start, quote := p.pos, p.text[p.pos]
	p.pos++
	var out strings.Builder
	for p.pos < len(p.text) {
		rest := p.text[p.pos:]
		switch {
		case rest[0] == quote:
			p.pos++
			return out.String(), nil
		case rest[0] == '\n':
			return "", p.wrong("a line break inside quotes must be written \\n")
		case len(rest) > 1 && rest[0] == '\\' && rest[1] == quote:
			out.WriteByte(quote)
			p.pos += 2
			continue
		}
		r, wide, tail, err := strconv.UnquoteChar(rest, quote)
		if err != nil {
			return "", p.wrong("unknown escape inside quotes")
		}
		if wide || r < utf8.RuneSelf {
			out.WriteRune(r)
		} else {
			out.WriteByte(byte(r))
		}
		p.pos += len(rest) - len(tail)
	}
	p.pos = start
	return "", p.wrong("quotes are not closed")
}

func (p *parser) space() {
	for r := p.peek(); r != end && unicode.IsSpace(r); r = p.peek() {
		p.pos += utf8.RuneLen(r)
	}
}

// peek gives the character at the current place without taking it.
func (p *parser) peek() rune {
	if p.pos >= len(p.text) {
		return end
	}
	r, _ := utf8.DecodeRuneInString(p.text[p.pos:])
	return r
}

func (p *parser) wrong(what string) error { return &fault{pos: p.pos, what: what} }
