package cgroup

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is a protobuf message while it is put together.
type message struct{ fields []field }

// field is one occurrence of a field.
type field struct {
	number protowire.Number
	kind   protowire.Type
	value  uint64   // of VarintType and Fixed64Type
	bytes  []byte   // of BytesType, without sub
	sub    *message // instead of bytes
}

// find returns the first occurrence of a field, made if it is missing.
func (m *message) find(n protowire.Number, kind protowire.Type) *field {
	for i := range m.fields {
		if m.fields[i].number == n {
			return &m.fields[i]
		}
	}
	m.fields = append(m.fields, field{number: n, kind: kind})
	return &m.fields[len(m.fields)-1]
}

// at returns the message at a path of fields that occur once.
func (m *message) at(path ...protowire.Number) *message {
	for _, n := range path {
		f := m.find(n, protowire.BytesType)
		if f.sub == nil {
			f.sub = &message{}
		}
		m = f.sub
	}
	return m
}

// add appends a message to a repeated field.
func (m *message) add(n protowire.Number) *message {
	sub := &message{}
	m.fields = append(m.fields, field{number: n, kind: protowire.BytesType, sub: sub})
	return sub
}

// set sets a number.
func (m *message) set(n protowire.Number, value uint64) {
	m.find(n, protowire.VarintType).value = value
}

// sum adds to a number.
func (m *message) sum(n protowire.Number, value uint64) {
	m.find(n, protowire.VarintType).value += value
}

// double sets a floating-point number.
func (m *message) double(n protowire.Number, value float64) {
	m.find(n, protowire.Fixed64Type).value = math.Float64bits(value)
}

// text sets a string, or what is encoded like one.
func (m *message) text(n protowire.Number, value string) {
	m.find(n, protowire.BytesType).bytes = []byte(value)
}

func (m *message) encode() []byte {
	var b []byte
	for _, f := range m.fields {
		b = protowire.AppendTag(b, f.number, f.kind)
		switch {
		case f.kind == protowire.VarintType:
			b = protowire.AppendVarint(b, f.value)
		case f.kind == protowire.Fixed64Type:
			b = protowire.AppendFixed64(b, f.value)
		case f.sub != nil:
			b = protowire.AppendBytes(b, f.sub.encode())
		default:
			b = protowire.AppendBytes(b, f.bytes)
		}
	}
	return b
}
