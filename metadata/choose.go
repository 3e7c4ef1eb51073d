package metadata

import (
	"cmp"
	"context"
	"slices"
	"strings"
)

// removable are the kinds that collection removes.
var removable = [...]kind{kindLease, kindImage, kindIngest, kindMount, kindSnapshot, kindContent}

// cut parts a key after its first part.
func cut(key string) (head, rest string, ok bool) { return strings.Cut(key, separator) }

// choose lists what is not marked, in the order in which it goes: what refers
// before what it refers to.
func (c *collection) choose(ctx context.Context, tx *Tx) error {
	refers := map[node][]node{}
	var found []node
	for _, kind := range removable {
		for key, value := range tx.scan(nodeBuckets[kind], "") {
			c.marker.pace.step()
			ns, rest, _ := cut(string(key))
			n := node{kind, ns, rest}
			if c.marker.marks[n] != unmarked {
				continue
			}
			f, err := look(n, value)
			if err != nil {
				return err
			}
			found = append(found, n)
			refers[n] = append(refers[n], outgoing(tx, n, f)...)
			for _, named := range f.back {
				refers[named] = append(refers[named], n)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	c.candidates = order(found, refers, &c.marker.pace)
	neighbours(c.candidates, refers, &c.marker.pace)
	return nil
}

// outgoing gives all that a row refers to.
func outgoing(tx *Tx, n node, f facts) []node {
	all := append(f.fixed, f.labeled...)
	for _, cond := range f.conds {
		all = append(all, cond.snapshot)
	}
	if n.kind == kindLease {
		tx.eachHeld(n.ns, n.key, func(resource, id string) {
			if held, ok := heldNode(n.ns, resource, id); ok {
				all = append(all, held)
			}
		})
	}
	return all
}

// order sorts nodes so that each stands before those it refers to, rings aside:
// a depth-first walk without recursion, as chains may be long, whose nodes are
// put down when all below them are, read backwards.
func order(nodes []node, refers map[node][]node, pace *pace) []node {
	const (
		fresh = iota
		open
		done
	)
	wanted := make(map[node]int8, len(nodes))
	for _, n := range nodes {
		wanted[n] = fresh
	}
	out := make([]node, 0, len(nodes))
	var stack []node
	for _, first := range nodes {
		stack = append(stack, first)
		for len(stack) > 0 {
			pace.step()
			n := stack[len(stack)-1]
			switch wanted[n] {
			case fresh:
				wanted[n] = open
				for _, below := range refers[n] {
					if state, ok := wanted[below]; ok && state == fresh {
						stack = append(stack, below)
					}
				}
			case open:
				wanted[n] = done
				out = append(out, n)
				stack = stack[:len(stack)-1]
			default:
				stack = stack[:len(stack)-1]
			}
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// neighbours sorts what is in order anew so that rows which lie together go
// together, as far as the order allows: with every row that is removed the whole
// of its page is written anew. Each node gets a level below those of all that
// refer to it, rings aside.
func neighbours(nodes []node, refers map[node][]node, pace *pace) {
	at := make(map[node]int, len(nodes))
	for i, n := range nodes {
		at[n] = i
	}
	level := make([]int, len(nodes))
	for i, n := range nodes {
		pace.step()
		for _, below := range refers[n] {
			if j, ok := at[below]; ok && j > i {
				level[j] = max(level[j], level[i]+1)
			}
		}
	}
	slices.SortFunc(nodes, func(a, b node) int {
		pace.step()
		return cmp.Or(cmp.Compare(level[at[a]], level[at[b]]), cmp.Compare(a.kind, b.kind),
			cmp.Compare(a.ns, b.ns), cmp.Compare(a.key, b.key))
	})
}
