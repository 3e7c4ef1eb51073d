package main

import "testing"

func TestContainerPath(t *testing.T) {
	for arg, want := range map[string][2]string{
		"c:/a": {"c", "/a"}, "c:a": {"c", "a"}, "c:": {"c", ""}, "c:/a:b": {"c", "/a:b"},
		"/c:/a": {}, "./c:a": {}, "../c:a": {}, "a": {}, "-": {}, ":/a": {}, "": {},
	} {
		container, path, ok := containerPath(arg)
		if ok != (want[0] != "") || ok && (container != want[0] || path != want[1]) {
			t.Errorf("%q: %q, %q, %t", arg, container, path, ok)
		}
	}
}

func TestPrintable(t *testing.T) {
	for name, want := range map[string]string{
		"/a b": "/a b", "/ä": "/ä", `/a"b\c`: `/a"b\c`, "/a\x1b[2J": `/a\x1b[2J`, "/a\nb": `/a\nb`, "/\xff": `/\xff`, "/\u202e": `/\u202e`,
	} {
		if got := printable(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}
