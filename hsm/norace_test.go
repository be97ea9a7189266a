//go:build !race

package hsm

const underRace = false
