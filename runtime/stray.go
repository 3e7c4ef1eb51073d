package runtime

import (
	"context"
	"os"
	"path/filepath"
)

// findStrays looks at sockets without a bundle. A daemon that ended between the
// two has left them: mostly nobody listens any more, and the file goes. Where a
// shim does, its connection is kept for Run. It has to be made now: later the
// same name may be a new shim's.
func (t *Tasks) findStrays() error {
	dir := filepath.Join(t.cfg.State, socketsDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, k := range t.tasks {
		known[k.socket] = true
	}
	for _, b := range t.boxes {
		known[b.socket] = true
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if known[path] || e.Type() != os.ModeSocket {
			continue
		}
		ctx, cancel := context.WithTimeout(t.ctx, t.cfg.Deadlines.Connect)
		c, err := t.dial(ctx, ownContact(path), false)
		cancel()
		switch {
		case err == nil:
			t.strays = append(t.strays, c) // the file is for the next start, or a new shim
		case dialAnswer(err) != refused:
			t.cfg.Log.Warn("socket without a bundle, left alone", "path", path, "error", err)
		default:
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// dismissStray sends a shim away that has no bundle. It stays if it has a
// container, about which nobody knows more than it does.
func (t *Tasks) dismissStray(c *conn) {
	defer c.close()
	if err := t.dismiss(t.ctx, nil, c); err != nil && t.ctx.Err() == nil {
		t.cfg.Log.Error("a shim without a bundle does not leave; look for it with ps", "error", err)
		return
	}
	t.cfg.Log.Info("shim without a bundle has left")
}
