// Package filter owns the language in which clients choose objects: its
// grammar and its meaning. It does not know any object; each store tells the
// value of a field through an Adaptor.
//
// A filter is selectors parted by commas, all of which must match:
//
//	filter   = [ selector { "," selector } ]
//	selector = path [ operator value ]
//	operator = "==" | "!=" | "~="
//	path     = field { "." field }
//	field    = letters, digits and "_" of ASCII | quoted
//	value    = quoted | letters, digits, punctuation and symbols, no comma
//
// A field, and the value of == and !=, is quoted with "; the value of ~= also
// with / or |. Quoted text has the escapes of Go, and a backslash before the
// quote. An unquoted value does not start with a quote, a dot, a comma or one
// of the characters of the operators. Space may stand before a field, an
// operator or a value, and nowhere else.
//
// A path alone matches when the field is present, == when it is present and
// equal. An absent field reads as empty for != and ~=. The expression of ~= is
// RE2 and unanchored; one that can't be compiled never matches.
package filter
