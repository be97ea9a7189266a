//go:build race

package hsm

// underRace: the race detector makes everything several times slower.
const underRace = true
