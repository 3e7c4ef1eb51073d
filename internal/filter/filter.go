package filter

import (
	"regexp"
)

// Adaptor is what an object looks like to a filter.
type Adaptor interface {
	// Field gives the value at path, which has at least one element, and
	// whether the object has it.
	Field(path []string) (value string, present bool)
}

// AdaptorFunc is an Adaptor that is a function.
type AdaptorFunc func(path []string) (value string, present bool)

// Field calls f.
func (f AdaptorFunc) Field(path []string) (value string, present bool) { return f(path) }

// Filter tells which objects a client asked for. It is safe for use by several
// goroutines at once.
type Filter interface {
	Match(object Adaptor) bool
}

// operator is how a selector compares.
type operator string

const (
	present  operator = "present"
	equal    operator = "=="
	notEqual operator = "!="
	matches  operator = "~="
)

// selector is one condition.
type selector struct {
	path  []string
	op    operator
	value string
	// expr is the compiled value of matches; nil if it can't be compiled.
	expr *regexp.Regexp
}

// Match tells whether the condition holds for object.
func (s selector) Match(object Adaptor) bool {
	value, ok := object.Field(s.path)
	if !ok {
		value = ""
	}
	switch s.op {
	case present:
		return ok
	case equal:
		return ok && value == s.value
	case notEqual:
		return value != s.value
	default:
		return s.expr != nil && s.expr.MatchString(value)
	}
}

// all matches when each of its selectors does; none are no condition.
type all []selector

func (f all) Match(object Adaptor) bool {
	for _, s := range f {
		if !s.Match(object) {
			return false
		}
	}
	return true
}

// anyOf matches when one of its filters does; it is never empty.
type anyOf []Filter

func (f anyOf) Match(object Adaptor) bool {
	for _, one := range f {
		if one.Match(object) {
			return true
		}
	}
	return false
}

// Parse reads one filter. The empty text matches everything. An error is of
// kind InvalidArgument and says at which byte the text goes wrong.
func Parse(text string) (Filter, error) {
	selectors, err := parse(text)
	if err != nil {
		return nil, err
	}
	return all(selectors), nil
}

// ParseAll reads a list of filters, of which one must match. An empty list
// matches everything, as does an empty text in it. Errors are those of Parse.
func ParseAll(texts ...string) (Filter, error) {
	if len(texts) == 0 {
		return all(nil), nil
	}
	filters := make(anyOf, 0, len(texts))
	for _, text := range texts {
		one, err := Parse(text)
		if err != nil {
			return nil, err
		}
		filters = append(filters, one)
	}
	if len(filters) == 1 {
		return filters[0], nil
	}
	return filters, nil
}
