package archive

import "encoding/binary"

// Extended attributes that hold POSIX access control lists.
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// The form of a list in an attribute: linux/posix_acl_xattr.h.
const (
	aclVersion    = 2
	aclHeader     = 4 // bytes
	aclEntry      = 8 // bytes: tag and rights, two each, and an id
	aclUser       = 0x02
	aclGroup      = 0x08
	aclEntryID    = 4 // where in an entry the id is
	maxACLEntries = 1 << 12
)

// acl gives an access control list the ids that its users and groups are to have
// in the layer. One in another form stays as it is.
func (d *differ) acl(value string) string {
	n := len(value) - aclHeader
	if d.o.Owner == nil || n < 0 || n%aclEntry != 0 || n/aclEntry > maxACLEntries || binary.LittleEndian.Uint32([]byte(value)) != aclVersion {
		return value
	}
	out := []byte(value)
	for at := aclHeader; at < len(out); at += aclEntry {
		id := out[at+aclEntryID : at+aclEntry]
		before := int(binary.LittleEndian.Uint32(id))
		switch uid, gid := d.o.Owner(before, before); binary.LittleEndian.Uint16(out[at:]) {
		case aclUser:
			binary.LittleEndian.PutUint32(id, uint32(uid))
		case aclGroup:
			binary.LittleEndian.PutUint32(id, uint32(gid))
		}
	}
	return string(out)
}
