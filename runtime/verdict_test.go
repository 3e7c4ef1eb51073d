package runtime

import (
	"errors"
	"testing"
)

// TestVerdict is the table of what is done with a bundle after a restart.
func TestVerdict(t *testing.T) {
	bad := errors.New("bad record")
	for _, c := range []struct {
		name string
		f    facts
		want verdict
	}{
		{"earlier boot", facts{Rebooted: true, Dial: answered, Holds: true}, verdictDiscard},
		{"earlier boot, damaged", facts{Rebooted: true, Damaged: bad}, verdictDiscard},
		{"damaged", facts{Damaged: bad, Started: true, Init: dead, Shim: dead}, verdictQuarantine},
		{"damaged, shim there", facts{Damaged: bad, Dial: answered, Holds: true}, verdictQuarantine},

		{"shim has the task", facts{Dial: answered, Holds: true, Started: true, Shim: alive, Init: alive}, verdictConnected},
		{"shim has the task, which has ended", facts{Dial: answered, Holds: true, Started: true, Exited: true, Shim: alive, Init: dead}, verdictConnected},
		{"shim has the task, no record yet", facts{Dial: answered, Holds: true, Shim: alive}, verdictConnected},
		{"delete half done", facts{Dial: answered, Started: true, Exited: true, Shim: alive, Init: dead}, verdictStopped},
		{"delete half done, exit not recorded", facts{Dial: answered, Started: true, Shim: alive, Init: dead}, verdictStopped},
		{"shim without the task, init alive", facts{Dial: answered, Started: true, Shim: alive, Init: alive}, verdictLost},
		{"create never reached the shim", facts{Dial: answered, Shim: alive}, verdictUndo},

		{"shim silent", facts{Dial: silent, Started: true, Shim: alive, Init: alive}, verdictUnknown},
		{"shim silent, init dead", facts{Dial: silent, Started: true, Shim: alive, Init: dead}, verdictUnknown},
		{"shim silent, exited", facts{Dial: silent, Started: true, Exited: true, Shim: alive, Init: dead}, verdictUnknown},
		{"shim silent, unrecorded", facts{Dial: silent}, verdictUnknown},
		{"shim silent because it is dead", facts{Dial: silent, Started: true, Shim: dead, Init: alive}, verdictLost},

		{"shim alive, but nobody listens", facts{Dial: refused, Started: true, Shim: alive, Init: alive}, verdictUnknown},
		{"shim alive, but nobody listens, exited", facts{Dial: refused, Started: true, Exited: true, Shim: alive}, verdictUnknown},
		{"shim dead, init alive", facts{Dial: refused, Started: true, Shim: dead, Init: alive}, verdictLost},
		{"shim dead, init dead", facts{Dial: refused, Started: true, Shim: dead, Init: dead}, verdictStopped},
		{"shim dead, exit recorded", facts{Dial: refused, Started: true, Exited: true, Shim: dead, Init: dead}, verdictStopped},
		{"shim unrecorded, init alive", facts{Dial: refused, Started: true, Init: alive}, verdictLost},
		{"intent only", facts{Dial: refused}, verdictUndo},
		{"cleaned up, but never made", facts{Dial: refused, Shim: dead, Exited: true}, verdictUndo},
		{"cleaned up, but never made, and a shim answers", facts{Dial: answered, Shim: alive, Exited: true}, verdictUndo},
		{"intent and a dead shim", facts{Dial: refused, Shim: dead}, verdictUndo},
	} {
		if got, reason := judge(c.f); got != c.want || reason == "" && got != verdictConnected {
			t.Errorf("%s: %s (%s), want %s", c.name, got, reason, c.want)
		}
	}
}

// TestVerdictNeverKillsOnDoubt goes through all facts: nothing is given up while
// anything of it may live.
func TestVerdictNeverKillsOnDoubt(t *testing.T) {
	all := 0
	for _, f := range everyFact() {
		all++
		v, _ := judge(f)
		gone := v == verdictUndo || v == verdictDiscard || v == verdictStopped
		if !gone || f.Rebooted {
			continue
		}
		switch {
		case f.Damaged != nil:
			t.Errorf("%s on a damaged record: %s", v, f)
		case f.Init == alive && !f.Exited:
			t.Errorf("%s while init lives: %s", v, f)
		case f.Dial == silent && f.Shim != dead:
			t.Errorf("%s though the shim may live: %s", v, f)
		case f.Dial == refused && f.Shim == alive:
			t.Errorf("%s though the shim lives: %s", v, f)
		case f.Dial == answered && f.Holds:
			t.Errorf("%s though the shim has the task: %s", v, f)
		}
	}
	if all != 2*2*2*2*3*2*3*3 {
		t.Fatal(all)
	}
}

// everyFact lists all combinations, also those that can't be: a live init needs
// a record of it.
func everyFact() []facts {
	var list []facts
	both := []bool{false, true}
	for _, rebooted := range both {
		for _, damaged := range []error{nil, errors.New("bad")} {
			for _, started := range both {
				for _, exited := range both {
					for _, dial := range []answer{refused, silent, answered} {
						for _, holds := range both {
							for _, shim := range []life{unrecorded, alive, dead} {
								for _, init := range []life{unrecorded, alive, dead} {
									f := facts{rebooted, damaged, started, exited, dial, holds, shim, init}
									if !started && init == alive {
										f.Init = unrecorded
									}
									list = append(list, f)
								}
							}
						}
					}
				}
			}
		}
	}
	return list
}
