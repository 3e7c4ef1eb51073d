package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// LookupUser finds who NAME|UID[:GROUP|GID] is in the /etc/passwd and
// /etc/group of root, with the groups that list the user, and the home
// directory. An empty name is the user with id 0. Files that are missing are
// empty ones. NotFound: a name that the files lack.
func LookupUser(root *Root, name string) (specs.User, string, error) {
	passwd, err := accounts(root, "/etc/passwd")
	if err != nil {
		return specs.User{}, "", err
	}
	group, err := accounts(root, "/etc/group")
	if err != nil {
		return specs.User{}, "", err
	}
	found, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, passwd, group)
	switch {
	case errors.Is(err, user.ErrRange):
		return specs.User{}, "", fmt.Errorf("user %q: the number is out of range: %w", name, errdefs.ErrInvalidArgument)
	case errors.Is(err, user.ErrNoPasswdEntries):
		return specs.User{}, "", fmt.Errorf("user %q is not in the container's /etc/passwd: %w", name, errdefs.ErrNotFound)
	case errors.Is(err, user.ErrNoGroupEntries):
		return specs.User{}, "", fmt.Errorf("group of user %q is not in the container's /etc/group: %w", name, errdefs.ErrNotFound)
	case err != nil:
		return specs.User{}, "", fmt.Errorf("user %q: %w", name, err)
	}
	u := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	for _, gid := range found.Sgids {
		u.AdditionalGids = append(u.AdditionalGids, uint32(gid))
	}
	return u, found.Home, nil
}

// accounts reads a file of accounts whole; a missing one is empty.
func accounts(root *Root, name string) (io.Reader, error) {
	data, err := root.ReadFile(name, maxAccounts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s in the container: %w", name, err)
	}
	return bytes.NewReader(data), nil
}

// parseID reads the number of a user or group; the highest means nobody.
func parseID(text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	if err == nil && id == math.MaxUint32 {
		err = strconv.ErrRange
	}
	return uint32(id), err
}
