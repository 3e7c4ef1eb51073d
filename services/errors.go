package services

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
)

// errDraining is what a call answers that the daemon ended because it stops.
var errDraining = fmt.Errorf("berthd is stopping: %w", errdefs.ErrUnavailable)

// wire maps an error to the status that clients see, once: kind to code, text
// as it is, all but the first of joined errors in the details.
func wire(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		text := strings.TrimSuffix(err.Error(), ": "+errdefs.ErrResourceExhausted.Error())
		err = fmt.Errorf("%s: %w", text, errdefs.ErrResourceExhausted)
	}
	return errgrpc.ToGRPC(err)
}

// missing is the error of a request that lacks a whole part.
func missing(part string) error {
	return fmt.Errorf("request has no %s: %w", part, errdefs.ErrInvalidArgument)
}

// notServed is the error of a method that this version has no code for. instead
// says what a client can do.
func notServed(method, instead string) error {
	return fmt.Errorf("%s is not served by this version of berth; %s: %w", method, instead, errdefs.ErrNotImplemented)
}
