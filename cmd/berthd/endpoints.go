package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/berthd/berth/internal/obs"
	"github.com/berthd/berth/internal/socket"
)

// endpoint is something optional that is served over HTTP.
type endpoint struct {
	what     string
	listener net.Listener
	server   *http.Server
}

// listenHTTP opens an address: a path is a unix socket for root alone, all else
// is TCP. It serves nothing before run.
func listenHTTP(what, address string, h http.Handler) (*endpoint, error) {
	e := &endpoint{what: what, server: &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
	}}
	var err error
	if strings.HasPrefix(address, "/") {
		e.listener, err = socket.Listen(address, socket.Options{Mode: 0o600, UID: os.Geteuid(), GID: os.Getegid()})
	} else {
		e.listener, err = net.Listen("tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return e, nil
}

// run serves until ctx ends; requests that are not done within a second then
// are cut off.
func (e *endpoint) run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- e.server.Serve(e.listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", e.what, err)
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := e.server.Shutdown(late)
	if errors.Is(err, context.DeadlineExceeded) {
		err = e.server.Close()
	}
	<-failed
	return err
}

// Close stops listening, if run has not done so.
func (e *endpoint) Close() error {
	if err := e.listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// debugHandler serves profiles of the daemon.
func debugHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// metricsHandler serves the daemon's metrics.
func metricsHandler(m *obs.Metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/metrics", m.Handler())
	return mux
}
