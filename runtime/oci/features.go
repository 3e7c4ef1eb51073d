package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// maxFeatures bounds what a runtime may print of its features, in bytes.
const maxFeatures = 1 << 20

// featuresTime bounds a question whose context has no deadline.
const featuresTime = killWait

// Features asks the runtime what it can do: a runtime-spec Features as JSON. A
// runtime that has no such command, as runc before 1.1 and crun before 1.9, has
// nil. It needs neither Root nor LogDir.
func (c *CLI) Features(ctx context.Context) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, featuresTime)
		defer cancel()
	}
	out, err := memoryFile("stdout", maxFeatures)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	failed := c.run(ctx, call{command: "features", stdio: Stdio{Out: out}, bare: true})
	data, err := written(out)
	if err != nil {
		return nil, err
	}
	var failure *Error
	switch {
	case errors.As(failed, &failure) && failure.ExitCode > 0 && len(data) < maxFeatures:
		return nil, nil
	case failed != nil:
		return nil, failed
	case !json.Valid(data):
		return nil, fmt.Errorf("%s features: what it prints is no JSON of less than %d bytes", c.name(), maxFeatures)
	}
	return data, nil
}
