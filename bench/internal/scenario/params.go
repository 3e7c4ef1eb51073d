package scenario

import (
	"time"

	"github.com/berthd/berth/bench/internal/ociimage"
)

// Params sizes all scenarios.
type Params struct {
	Quick bool
	// Timeout bounds one call of a scenario's function for one daemon.
	Timeout time.Duration
	// StartTimeout bounds the start of a daemon.
	StartTimeout time.Duration

	StaticStarts       int
	LifecycleRounds    int
	LifecyclePerRound  int
	ParallelRounds     int
	ParallelPerWorker  int
	ExecRounds         int
	ExecPerRound       int
	ManyExecs          int
	PodRounds          int
	Density            int
	ShimRounds         int
	FlushLives         int
	RestartRounds      int
	RestartRunning     int
	RestartExited      int
	Large              ociimage.LargeSpec
	ImportRounds       int
	PullRounds         int
	ContentRounds      int
	ContentBytes       int64
	MetadataRounds     int
	MetadataOps        int
	MetadataList       int
	EventLatency       int
	EventRounds        int
	EventBurst         int
	StdioRounds        int
	StdioBytes         int64
	StdioShort         int
	GCImages           int
	GCBlobs            int
	GCSnapshots        int
	IdleBeforeMeasures time.Duration
}

// DefaultParams sizes a full run.
func DefaultParams() *Params {
	return &Params{
		Timeout: 5 * time.Minute, StartTimeout: time.Minute,
		StaticStarts: 7, LifecycleRounds: 6, LifecyclePerRound: 10,
		ParallelRounds: 5, ParallelPerWorker: 4, ExecRounds: 6, ExecPerRound: 15, ManyExecs: 2000, PodRounds: 3,
		Density: 50, ShimRounds: 5, FlushLives: 10, RestartRounds: 2, RestartRunning: 200, RestartExited: 200,
		Large:        ociimage.LargeSpec{Layers: 10, SmallFiles: 20000, BigFiles: 8, BigBytes: 16 << 20},
		ImportRounds: 5, PullRounds: 3,
		ContentRounds: 5, ContentBytes: 512 << 20,
		MetadataRounds: 5, MetadataOps: 300, MetadataList: 10000,
		EventLatency: 1000, EventRounds: 3, EventBurst: 5000,
		StdioRounds: 5, StdioBytes: 512 << 20, StdioShort: 100,
		GCImages: 1000, GCBlobs: 5000, GCSnapshots: 2000,
		IdleBeforeMeasures: 2 * time.Second,
	}
}

// QuickParams sizes a smoke run of a few minutes.
func QuickParams() *Params {
	return &Params{
		Quick: true, Timeout: 90 * time.Second, StartTimeout: 20 * time.Second,
		StaticStarts: 3, LifecycleRounds: 3, LifecyclePerRound: 4,
		ParallelRounds: 1, ParallelPerWorker: 2, ExecRounds: 3, ExecPerRound: 5, ManyExecs: 50, PodRounds: 1,
		Density: 10, ShimRounds: 2, FlushLives: 2, RestartRounds: 1, RestartRunning: 5, RestartExited: 5,
		Large:        ociimage.LargeSpec{Layers: 5, SmallFiles: 2000, BigFiles: 2, BigBytes: 8 << 20},
		ImportRounds: 1, PullRounds: 1,
		ContentRounds: 1, ContentBytes: 64 << 20,
		MetadataRounds: 1, MetadataOps: 50, MetadataList: 500,
		EventLatency: 200, EventRounds: 1, EventBurst: 1000,
		StdioRounds: 1, StdioBytes: 64 << 20, StdioShort: 12,
		GCImages: 100, GCBlobs: 250, GCSnapshots: 100,
		IdleBeforeMeasures: 500 * time.Millisecond,
	}
}
