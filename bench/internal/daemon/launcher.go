package daemon

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/berthd/berth/bench/internal/procfs"
	"golang.org/x/sys/unix"
)

// LauncherArg is the hidden first argument that turns the benchmark binary into
// a launcher.
const LauncherArg = "__launcher"

type launcherRequest struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	Log  string   `json:"log"`
}

type launcherEvent struct {
	Kind   string `json:"kind"` // started, exit, error
	Pid    int    `json:"pid,omitempty"`
	Status int    `json:"status,omitempty"`
	Text   string `json:"text,omitempty"`
	// AtNanos is the wall clock just before the fork of a start.
	AtNanos int64 `json:"at,omitempty"`
}

// RunLauncher is the main function of a launcher: the parent of one daemon and
// the subreaper of everything the daemon leaves behind. All processes of a
// daemon, also those that survive its death, are thus found below its
// launcher. It ends when its standard input is closed and takes all its
// descendants with it.
func RunLauncher() {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "launcher: subreaper:", err)
		os.Exit(1)
	}
	enc := json.NewEncoder(os.Stdout)
	events := make(chan launcherEvent, 64)
	go func() {
		for e := range events {
			_ = enc.Encode(e)
		}
	}()
	go reap(events)

	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<20), 1<<20)
	for in.Scan() {
		var req launcherRequest
		if err := json.Unmarshal(in.Bytes(), &req); err != nil {
			events <- launcherEvent{Kind: "error", Text: err.Error()}
			continue
		}
		// The lock keeps an early exit from being reported before its start.
		order.Lock()
		events <- launch(req)
		order.Unlock()
	}
	KillBelow(os.Getpid(), 10*time.Second)
	os.Exit(0)
}

var order sync.Mutex

func launch(req launcherRequest) launcherEvent {
	at := time.Now()
	pid, err := fork(req)
	if err != nil {
		return launcherEvent{Kind: "error", Text: err.Error()}
	}
	return launcherEvent{Kind: "started", Pid: pid, AtNanos: at.UnixNano()}
}

func fork(req launcherRequest) (int, error) {
	log, err := os.OpenFile(req.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	return syscall.ForkExec(req.Argv[0], req.Argv, &syscall.ProcAttr{
		Env:   req.Env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
}

// reap waits for every child, its own or adopted.
func reap(events chan<- launcherEvent) {
	sig := make(chan os.Signal, 16)
	signal.Notify(sig, syscall.SIGCHLD)
	tick := time.NewTicker(time.Second)
	for {
		for {
			var ws syscall.WaitStatus
			order.Lock()
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err == nil && pid > 0 {
				events <- launcherEvent{Kind: "exit", Pid: pid, Status: int(ws)}
			}
			order.Unlock()
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
		}
		select {
		case <-sig:
		case <-tick.C:
		}
	}
}

// KillBelow sends SIGKILL to every descendant of root until none is left.
func KillBelow(root int, patience time.Duration) error {
	end := time.Now().Add(patience)
	for {
		pids := procfs.Descendants(root)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes still alive: %s", describe(pids))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func describe(pids []int) string {
	s := ""
	for _, p := range pids {
		s += procfs.Command(p) + "(" + strconv.Itoa(p) + ") "
	}
	return s
}
