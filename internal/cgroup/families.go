package cgroup

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// What is not one number per file: lines of a device each, and files that are
// named for what they count.

// families reads the files whose names differ from machine to machine.
func (g Group) families(root *message) error {
	if g.Unified != "" {
		return hugeV2(g.Unified, root)
	}
	var errs []error
	if dir, ok := g.Controllers["hugetlb"]; ok {
		errs = append(errs, hugeV1(dir, root))
	}
	if dir, ok := g.Controllers["blkio"]; ok {
		errs = append(errs, blkio(dir, root))
	}
	return errors.Join(errs...)
}

// perCPU reads cpuacct.usage_percpu: nanoseconds of each CPU.
func perCPU(text string, m *message) {
	var packed []byte
	for _, word := range strings.Fields(text) {
		if n, ok := number(word); ok {
			packed = protowire.AppendVarint(packed, n)
		}
	}
	m.text(4, string(packed))
}

// pressure reads a file of pressure stall information (accounting/psi.rst):
// lines "some avg10=0.12 avg60=0.05 avg300=0.01 total=1234", in percent and
// microseconds.
func pressure(text string, m *message) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		n := protowire.Number(slices.Index([]string{"", "some", "full"}, words[0]))
		if n < 1 {
			continue
		}
		data := m.at(n)
		for _, word := range words[1:] {
			name, value, _ := strings.Cut(word, "=")
			if total, ok := number(value); ok && name == "total" {
				data.set(4, total)
				continue
			}
			i := slices.Index([]string{"", "avg10", "avg60", "avg300"}, name)
			if f, err := strconv.ParseFloat(value, 64); err == nil && i > 0 {
				data.double(protowire.Number(i), f)
			}
		}
	}
}

// ioStat reads io.stat: lines "8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...".
func ioStat(text string, m *message) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue // a device that did nothing
		}
		major, minor, ok := device(words[0])
		if !ok {
			continue
		}
		entry := m.add(1)
		entry.set(1, major)
		entry.set(2, minor)
		for _, word := range words[1:] {
			name, value, _ := strings.Cut(word, "=")
			i := slices.Index([]string{"rbytes", "wbytes", "rios", "wios"}, name)
			if n, ok := number(value); ok && i >= 0 {
				entry.set(protowire.Number(3+i), n)
			}
		}
	}
}

// rdma reads rdma.current or rdma.max into a repeated field: lines
// "mlx4_0 hca_handle=2 hca_object=2000".
func rdma(n protowire.Number) func(string, *message) {
	return func(text string, m *message) {
		for line := range strings.Lines(text) {
			words := strings.Fields(line)
			if len(words) < 2 {
				continue
			}
			entry := m.add(n)
			entry.text(1, words[0])
			for _, word := range words[1:] {
				name, value, _ := strings.Cut(word, "=")
				i := slices.Index([]string{"hca_handle", "hca_object"}, name)
				if v, ok := number(value); ok && i >= 0 {
					entry.set(protowire.Number(2+i), min(v, math.MaxUint32))
				}
			}
		}
	}
}

// device reads "MAJOR:MINOR".
func device(word string) (major, minor uint64, ok bool) {
	a, b, _ := strings.Cut(word, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	return major, minor, err1 == nil && err2 == nil
}

// pageSizes lists the sizes of huge pages that a group counts, as "2MB": files
// are named "hugetlb.2MB" and a suffix.
func pageSizes(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // just removed
	}
	if err != nil {
		return nil, err
	}
	var sizes []string
	for _, e := range entries {
		size, ok := strings.CutPrefix(e.Name(), "hugetlb.")
		if size, ok2 := strings.CutSuffix(size, suffix); ok && ok2 && !strings.Contains(size, ".") {
			sizes = append(sizes, size)
		}
	}
	return sizes, nil
}

// huge reads the pages of each size into a repeated field. files are the
// suffixes, by the field of each.
func huge(dir string, repeated, name protowire.Number, files map[protowire.Number]string, first string, root *message) error {
	sizes, err := pageSizes(dir, first)
	if err != nil {
		return err
	}
	for _, size := range sizes {
		entry := root.add(repeated)
		entry.text(name, size)
		for n, suffix := range files {
			data, err := readFile(filepath.Join(dir, "hugetlb."+size+suffix))
			if err != nil {
				return err
			}
			// ".events" is a line "max 3"; every other file has the number alone.
			if v, ok := number(strings.TrimPrefix(string(data), "max ")); ok {
				entry.set(n, v)
			}
		}
	}
	return nil
}

func hugeV1(dir string, root *message) error {
	files := map[protowire.Number]string{1: ".usage_in_bytes", 2: ".max_usage_in_bytes", 3: ".failcnt"}
	return huge(dir, 1, 4, files, ".usage_in_bytes", root)
}

func hugeV2(dir string, root *message) error {
	files := map[protowire.Number]string{1: ".current", 2: ".max", 4: ".events"}
	return huge(dir, 7, 3, files, ".current", root)
}

// blkioFields are the names in blkio files, by the field of each from 1 up.
var blkioFields = []string{"io_service_bytes", "io_serviced", "io_queued", "io_service_time", "io_wait_time", "io_merged", "time", "sectors"}

// blkio reads what was read and written, of whichever scheduler counts it: BFQ,
// the CFQ of kernels before 5.0, or the throttle layer above any.
func blkio(dir string, root *message) error {
	m := root.at(5)
	for i, name := range blkioFields {
		for _, file := range []string{"bfq." + name + "_recursive", name + "_recursive", "throttle." + name + "_recursive", "throttle." + name} {
			data, err := readFile(filepath.Join(dir, "blkio."+file))
			if err != nil {
				return err
			}
			if blkioEntries(string(data), protowire.Number(i+1), m) {
				break
			}
		}
	}
	return nil
}

// blkioEntries reads lines "8:0 Read 1024", or "8:0 1024", and tells whether there
// was one. The sum of all at the end is not on the wire.
func blkioEntries(text string, n protowire.Number, m *message) (any bool) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || len(words) > 3 {
			continue
		}
		major, minor, ok := device(words[0])
		value, isNumber := number(words[len(words)-1])
		if !ok || !isNumber {
			continue
		}
		entry := m.add(n)
		if len(words) == 3 {
			entry.text(1, words[1])
		}
		if name := deviceName(words[0]); name != "" {
			entry.text(2, name)
		}
		entry.set(3, major)
		entry.set(4, minor)
		entry.set(5, value)
		any = true
	}
	return any
}

// deviceName is the path of a block device, "" if it has none.
func deviceName(number string) string {
	link, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		return ""
	}
	return "/dev/" + filepath.Base(link)
}
