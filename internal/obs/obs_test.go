package obs

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestLoggerLevelChangesWhileInUse(t *testing.T) {
	var out bytes.Buffer
	log, level := Logger(&out, slog.LevelInfo, "json")
	log.Debug("hidden")
	level.Set(slog.LevelDebug)
	log.Debug("shown", "id", "a")
	var line struct{ Msg, ID string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Msg != "shown" || line.ID != "a" {
		t.Errorf("got %q, error %v, want one line", out.String(), err)
	}
	out.Reset()
	text, _ := Logger(&out, slog.LevelWarn, "text")
	text.Info("hidden")
	text.Warn("task lost", "id", "a")
	if !strings.Contains(out.String(), `msg="task lost" id=a`) || strings.Contains(out.String(), "hidden") {
		t.Errorf("got %q", out.String())
	}
}

func TestStacksHasEveryGoroutine(t *testing.T) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); waitHereForTheTest(stop) }()
	defer func() { close(stop); <-done }()
	for deadline := time.Now().Add(10 * time.Second); ; {
		s := string(Stacks())
		if strings.Contains(s, "waitHereForTheTest") && strings.Contains(s, "TestStacksHasEveryGoroutine") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("stacks lack a goroutine:\n%s", s)
		}
	}
}

func waitHereForTheTest(stop chan struct{}) { <-stop }

func TestMetrics(t *testing.T) {
	var none *Metrics
	none.Call("/a/B", "OK", false, time.Second)
	none.Collection(time.Second, 0, nil)

	m := NewMetrics(func() map[string]int { return map[string]int{"connected": 3} })
	m.Call("/a/B", "OK", false, 3*time.Millisecond)
	m.Call("/a/B", "NotFound", false, time.Millisecond)
	m.Call("/a/Watch", "Canceled", true, time.Hour)
	m.Collection(20*time.Millisecond, time.Millisecond, map[string]int64{"blob": 2})
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/v1/metrics", nil))
	body, err := io.ReadAll(rec.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`berth_calls_total{code="OK",method="/a/B"} 1`,
		`berth_calls_total{code="NotFound",method="/a/B"} 1`,
		`berth_calls_total{code="Canceled",method="/a/Watch"} 1`,
		`berth_call_seconds_count{method="/a/B"} 2`,
		`berth_gc_seconds_count 1`,
		`berth_gc_stall_seconds 0.001`,
		`berth_gc_removed_total{kind="blob"} 2`,
		`berth_tasks{verdict="connected"} 3`,
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	if strings.Contains(string(body), `berth_call_seconds_count{method="/a/Watch"}`) {
		t.Error("a stream was timed")
	}
}
