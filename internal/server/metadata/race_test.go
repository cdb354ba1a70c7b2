//go:build race

package metadata

// raceBytes is what the race detector adds to a waiting request: its stacks are larger.
const raceBytes = 16 << 10
