package hsm

import (
	"fmt"
	"testing"
)

// BenchmarkIsolation compares a member in this process with one in a worker.
// Run it with -cpu 1,2 and -benchtime 1s; more of it is in trent-bench.
func BenchmarkIsolation(b *testing.B) {
	for _, isolation := range []Isolation{IsolationNone, IsolationWorker} {
		cfg, _ := newDomainConfig(b, 1)
		cfg.Isolation, cfg.Metrics = isolation, nil
		if isolation == IsolationNone {
			cfg.Members[0].Environment = nil
		}
		d := openDomain(b, cfg)
		key, _, err := d.GenerateAES(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		text := make([]byte, 32)
		for _, callers := range []int{1, 4, 16, 64} {
			b.Run(fmt.Sprintf("%s/%d", isolation, callers), func(b *testing.B) {
				each := func() error {
					_, err := sealBlob(b.Context(), d, key, text)
					return err
				}
				spread := make(chan error, callers)
				b.ResetTimer()
				for i := range callers {
					go func() {
						var err error
						for n := i; n < b.N && err == nil; n += callers {
							err = each()
						}
						spread <- err
					}()
				}
				for range callers {
					if err := <-spread; err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
