package hsm

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkRaw is one caller of the fused call, the measure of the next one.
func BenchmarkRaw(b *testing.B) {
	cfg := testConfig(b)
	for _, decrypt := range []bool{false, true} {
		b.Run(fmt.Sprintf("decrypt=%t", decrypt), func(b *testing.B) {
			ops, err := RawBench(cfg, time.Duration(b.N)*10*time.Microsecond, 1, decrypt) // as if 10 µs each
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(ops, "ops/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkDomain is the same 32 bytes through queue, cache and copies, by 16
// callers.
func BenchmarkDomain(b *testing.B) {
	d := newDomain(b, nil)
	ekt := newAES(b, d)
	plain, aad := make([]byte, benchPlain), make([]byte, 64)
	iv, sealed, err := d.Encrypt(b.Context(), ekt, aad, plain)
	if err != nil {
		b.Fatal(err)
	}
	calls := map[string]func() error{
		"decrypt=false": func() error { _, _, err := d.Encrypt(b.Context(), ekt, aad, plain); return err },
		"decrypt=true":  func() error { _, err := d.Decrypt(b.Context(), ekt, iv, aad, sealed); return err },
	}
	for name, call := range calls {
		b.Run(name, func(b *testing.B) {
			b.SetParallelism(8) // times GOMAXPROCS = 16 callers on two cores
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := call(); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
		})
	}
}
