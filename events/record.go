package events

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

const (
	magic     = "berthev1"
	headerLen = 4 + 4 + 8
	// maxBody is how large one event may be when packed: what fits into one
	// message from a shim.
	maxBody = 4 << 20
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	// errShort: the data ends before the record does.
	errShort = errors.New("record is cut off")
	// errDamaged: the bytes are not what was written.
	errDamaged = errors.New("record is damaged")
)

// seal completes a record whose body stands behind headerLen free bytes.
func seal(record []byte, number uint64) {
	binary.LittleEndian.PutUint32(record, uint32(len(record)-headerLen))
	binary.LittleEndian.PutUint64(record[8:], number)
	binary.LittleEndian.PutUint32(record[4:], crc32.Checksum(record[8:], castagnoli))
}

// measure gives the length of the record that data starts with, from its
// header alone. The error is errShort or errDamaged.
func measure(data []byte) (int, error) {
	if len(data) < headerLen {
		return 0, errShort
	}
	body := binary.LittleEndian.Uint32(data)
	if body > maxBody {
		return 0, errDamaged
	}
	return headerLen + int(body), nil
}

// unseal takes the first record of data apart. The body is part of data. The
// error is errShort or errDamaged.
func unseal(data []byte) (number uint64, body []byte, length int, err error) {
	length, err = measure(data)
	if err != nil {
		return 0, nil, 0, err
	}
	if len(data) < length {
		return 0, nil, 0, errShort
	}
	if binary.LittleEndian.Uint32(data[4:]) != crc32.Checksum(data[8:length], castagnoli) {
		return 0, nil, 0, errDamaged
	}
	return binary.LittleEndian.Uint64(data[8:]), data[headerLen:length], length, nil
}
