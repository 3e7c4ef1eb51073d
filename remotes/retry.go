package remotes

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// policy says when a request is sent again. It is oras-go's retry.Policy.
type policy struct {
	attempts int           // how often in all
	first    time.Duration // pause before the second
	longest  time.Duration // pause at most, and Retry-After at most
	now      func() time.Time
}

// Retry tells the pause before the next try; a negative one means that there is
// none.
func (p policy) Retry(attempt int, resp *http.Response, err error) (time.Duration, error) {
	if attempt >= p.attempts-1 {
		return -1, nil
	}
	if err != nil {
		if passing(err) {
			return p.pause(attempt), nil
		}
		return -1, nil
	}
	if !passingStatus(resp.StatusCode) {
		return -1, nil
	}
	if wait, ok := retryAfter(resp.Header.Get("Retry-After"), p.now()); ok {
		// One that wants to be left alone for long is not asked again: the caller
		// is told how long.
		if wait > p.longest {
			return -1, nil
		}
		return max(wait, p.pause(0)), nil
	}
	return p.pause(attempt), nil
}

// pause doubles with each attempt and is between half of that and the whole, so
// that many clients don't come back at once.
func (p policy) pause(attempt int) time.Duration {
	d := p.longest
	if attempt < 20 {
		d = min(d, p.first<<attempt)
	}
	return d/2 + rand.N(d/2+1)
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(text string, now time.Time) (time.Duration, bool) {
	if text == "" {
		return 0, false
	}
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(now), 0), true
	}
	return 0, false
}

// passingStatus tells whether a status may be another the next time.
func passingStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// passing tells whether a request that came to nothing may do better the next time:
// the network failed, not what was said on it.
func passing(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if errors.Is(err, errStalled) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return true
	}
	for _, errno := range []error{syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.ECONNABORTED, syscall.EPIPE, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ETIMEDOUT} {
		if errors.Is(err, errno) {
			return true
		}
	}
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		return dns.IsTemporary || dns.IsTimeout
	}
	timeout := net.Error(nil)
	return errors.As(err, &timeout) && timeout.Timeout()
}
