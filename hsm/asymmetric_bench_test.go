package hsm

import (
	"context"
	"testing"
)

// BenchmarkPairs measures calls on cached private keys and the making of pairs.
func BenchmarkPairs(b *testing.B) {
	d := newDomain(b, nil)
	sign := func(spec, algorithm string, size int) func(context.Context) error {
		ekt := newKey(b, d, spec, UseSign).EKT
		return func(ctx context.Context) error {
			_, err := d.Sign(ctx, ekt, algorithm, make([]byte, size))
			return err
		}
	}
	mac := newKey(b, d, "HMAC_256", UseMAC).EKT
	agree := newKey(b, d, "ECC_NIST_P256", UseAgree)
	pair := func(spec string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, _, err := d.GenerateDataKeyPair(ctx, spec)
			return err
		}
	}
	for _, bench := range []struct {
		name string
		call func(context.Context) error
	}{
		{"sign RSA_2048 PSS", sign("RSA_2048", "RSASSA_PSS_SHA_256", 32)},
		{"sign ECC_NIST_P256", sign("ECC_NIST_P256", "ECDSA_SHA_256", 32)},
		{"MAC HMAC_256", func(ctx context.Context) error {
			_, err := d.MAC(ctx, mac, "HMAC_SHA_256", make([]byte, 32))
			return err
		}},
		{"agree ECC_NIST_P256", func(ctx context.Context) error {
			_, err := d.Agree(ctx, agree.EKT, agree.PublicKey)
			return err
		}},
		{"data key pair ECC_NIST_P256", pair("ECC_NIST_P256")},
		{"data key pair RSA_2048", pair("RSA_2048")},
		{"generate ECC_NIST_P256", func(ctx context.Context) error {
			_, err := d.Generate(ctx, "ECC_NIST_P256", UseSign)
			return err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetParallelism(4)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := bench.call(b.Context()); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
