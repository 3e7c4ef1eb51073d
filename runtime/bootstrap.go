package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/runtime/bootstrap/v1"
	"github.com/berthd/berth/internal/version"
)

// Versions of the task API, and the protocols that it may be spoken over.
const (
	taskV2        = 2
	taskV3        = 3
	protocolTTRPC = "ttrpc"
	protocolGRPC  = "grpc"
)

// contact says where a shim listens and what it speaks there. As JSON it is the
// bundle's bootstrap.json.
type contact struct {
	Version  int    `json:"version"`
	Address  string `json:"address"`
	Protocol string `json:"protocol"`
}

// ownContact is that of our own shim on one of our sockets.
func ownContact(socket string) contact {
	return contact{Version: taskV3, Address: socket, Protocol: protocolTTRPC}
}

// parseContact reads what the start of a shim has printed, in any of the three
// forms that there are: a BootstrapResult, JSON, or a bare address.
func parseContact(output []byte) (contact, error) {
	var r bootstrap.BootstrapResult
	if err := proto.Unmarshal(output, &r); err == nil && isContact(output) {
		return checkContact(contact{Version: int(r.GetVersion()), Address: r.GetAddress(), Protocol: r.GetProtocol()})
	}
	text := bytes.TrimSpace(output)
	var c contact
	if err := json.Unmarshal(text, &c); err == nil && c.Version >= taskV2 {
		return checkContact(c)
	}
	return checkContact(contact{Version: taskV2, Address: string(text), Protocol: protocolTTRPC})
}

// isContact tells a BootstrapResult from a text that happens to parse as one: it
// has a version and an address, and no field that is not known.
func isContact(output []byte) bool {
	var version, address bool
	for len(output) > 0 {
		number, kind, n := protowire.ConsumeField(output)
		if n < 0 {
			return false
		}
		switch {
		case number == 1 && kind == protowire.VarintType:
			version = true
		case number == 2 && kind == protowire.BytesType:
			address = true
		case number < 1 || number > 5:
			return false
		}
		output = output[n:]
	}
	return version && address
}

// checkContact refuses what this daemon can't speak to.
func checkContact(c contact) (contact, error) {
	if c.Protocol == "" {
		c.Protocol = protocolTTRPC
	}
	switch {
	case c.Version < taskV2 || c.Version > taskV3:
		return contact{}, fmt.Errorf("it speaks version %d of the task API, this daemon 2 and 3", c.Version)
	case c.Protocol != protocolTTRPC && c.Protocol != protocolGRPC:
		return contact{}, fmt.Errorf("it speaks the protocol %q, this daemon ttrpc and grpc", clip(c.Protocol))
	case c.Protocol == protocolGRPC && c.Version < taskV3:
		return contact{}, fmt.Errorf("it speaks version %d of the task API over grpc, which there is none of", c.Version)
	}
	if c.Address == "" {
		return contact{}, errors.New("it printed no address")
	}
	if !utf8.ValidString(c.Address) || strings.ContainsFunc(c.Address, unicode.IsControl) || strings.Contains(c.Address, " ") {
		return contact{}, fmt.Errorf("it printed %q, which is no address", clip(c.Address))
	}
	_, err := c.dialer()
	return c, err
}

// local tells whether the shim is on this machine, so that it can be reached at once
// or not at all.
func (c contact) local() bool {
	scheme, _, ok := strings.Cut(c.Address, "://")
	return !ok || scheme == "unix"
}

// clip shortens a text for an error.
func clip(text string) string {
	const most = 200
	if len(text) <= most {
		return text
	}
	return text[:most] + "..."
}

// dialer gives the function that connects to the address.
func (c contact) dialer() (func(ctx context.Context) (net.Conn, error), error) {
	scheme, rest, ok := strings.Cut(c.Address, "://")
	if !ok { // a path is one of ours, anything else an abstract name
		scheme, rest = "unix", c.Address
		if !filepath.IsAbs(rest) {
			rest = "@" + rest
		}
	}
	switch scheme {
	case "unix":
		if len(rest) > socketMax {
			return nil, fmt.Errorf("its address %q is longer than the %d bytes of a socket's path", clip(c.Address), socketMax)
		}
		return func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", rest)
		}, nil
	case "vsock":
		cid, port, err := vsockAddress(rest)
		if err != nil {
			return nil, fmt.Errorf("its address %q: %w", clip(c.Address), err)
		}
		return func(ctx context.Context) (net.Conn, error) { return dialVsock(ctx, cid, port) }, nil
	case "hvsock":
		at := strings.LastIndexByte(rest, ':')
		if at < 0 || !filepath.IsAbs(rest[:at]) {
			return nil, fmt.Errorf("its address %q is no hvsock://PATH:PORT", clip(c.Address))
		}
		port, err := strconv.ParseUint(rest[at+1:], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("its address %q is no hvsock://PATH:PORT", clip(c.Address))
		}
		return func(ctx context.Context) (net.Conn, error) { return dialHybrid(ctx, rest[:at], uint32(port)) }, nil
	}
	return nil, fmt.Errorf("its address %q has a scheme that this daemon does not know; unix, vsock and hvsock it does", clip(c.Address))
}

// legacyParams are parts of shims' names that take the bare options on standard
// input.
var legacyParams = []string{"shim-runc-v1", "shim-runhcs-v1"}

// startInput is what the start of a shim reads from its standard input.
func (t *Tasks) startInput(k *task, binary string, options *anypb.Any) ([]byte, error) {
	for _, part := range legacyParams {
		if strings.Contains(filepath.Base(binary), part) {
			return bareOptions(options)
		}
	}
	p := &bootstrap.BootstrapParams{
		InstanceId: k.id, Namespace: k.ns, ContainerdVersion: version.String(),
		ContainerdTtrpcAddress: t.cfg.TTRPCAddress, ContainerdGrpcAddress: t.cfg.Address, ContainerdBinary: t.cfg.Daemon,
	}
	if t.debugFlag() != nil {
		p.LogLevel = bootstrap.LogLevel_LOG_LEVEL_DEBUG
	}
	if options != nil {
		p.Extensions = []*bootstrap.Extension{{Value: options}}
	}
	return proto.Marshal(p)
}

// bareOptions is what shims of before the BootstrapParams read.
func bareOptions(options *anypb.Any) ([]byte, error) {
	if options == nil {
		return nil, nil
	}
	return proto.Marshal(options)
}

// dialRetry waits for a shim that has said where it listens but is not quite
// there: it tries until ctx ends.
func dialRetry(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	pause := time.Millisecond
	for {
		conn, err := dial(ctx)
		if err == nil {
			return conn, nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			pause = min(2*pause, 100*time.Millisecond)
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
	}
}
