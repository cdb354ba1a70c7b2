//go:build !race

package metadata

const raceBytes = 0
