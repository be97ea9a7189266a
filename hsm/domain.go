package hsm

import (
	"context"
	"errors"
	"sync"
)

// Domain is a deployment's keys as its users see them: on one token or several,
// in this process or in worker processes. Its operations are Member's, whose
// comments say what they do. It is safe for concurrent use.
type Domain struct {
	members caller
	front   *spread // nil for DomainOf's
}

// DomainOf is the domain of one member in this process, whose token the caller
// keeps open and closes.
func DomainOf(m *Member) *Domain { return &Domain{members: m} }

// Close ends the members that OpenDomain opened, and waits for their workers.
func (d *Domain) Close() {
	if d.front != nil {
		d.front.close()
	}
}

// Health says how each member is; nothing for DomainOf's.
func (d *Domain) Health() []MemberHealth {
	if d.front == nil {
		return nil
	}
	return d.front.health()
}

// exchange is a call and its reply, recycled: neither is on the stack, since
// both pass through an interface.
type exchange struct {
	call
	reply
}

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

// do does c and hands its reply to take, if that is not nil. All that take
// keeps must be slices of the reply.
func (d *Domain) do(ctx context.Context, c call, take func(*reply) error) error {
	x := exchanges.Get().(*exchange)
	x.call = c
	err := d.members.do(ctx, &x.call, &x.reply)
	if err == nil && take != nil {
		err = take(&x.reply)
	}
	*x = exchange{}
	exchanges.Put(x)
	return err
}

// bytes is do for calls that answer bytes and nothing else.
func (d *Domain) bytes(ctx context.Context, c call) (out []byte, err error) {
	x := exchanges.Get().(*exchange)
	x.call = c
	if err = d.members.do(ctx, &x.call, &x.reply); err == nil {
		if out = x.out; out == nil {
			out = []byte{} // an empty answer is one
		}
	}
	*x = exchange{}
	exchanges.Put(x)
	return out, err
}

// Encrypt is Member.Encrypt.
func (d *Domain) Encrypt(ctx context.Context, ekt EKT, aad, plaintext []byte) (iv, sealed []byte, err error) {
	err = d.do(ctx, call{op: callEncrypt, ekt: ekt, aad: aad, in: plaintext}, func(r *reply) error {
		iv, sealed = r.public, r.out
		return nil
	})
	return iv, sealed, err
}

// Decrypt is Member.Decrypt.
func (d *Domain) Decrypt(ctx context.Context, ekt EKT, iv, aad, ciphertext []byte) ([]byte, error) {
	return d.bytes(ctx, call{op: callDecrypt, ekt: ekt, iv: iv, aad: aad, in: ciphertext})
}

// HMAC is Member.HMAC.
func (d *Domain) HMAC(ctx context.Context, ekt EKT, message []byte) ([]byte, error) {
	return d.bytes(ctx, call{op: callHMAC, ekt: ekt, in: message})
}

// MAC is Member.MAC.
func (d *Domain) MAC(ctx context.Context, ekt EKT, algorithm string, message []byte) ([]byte, error) {
	return d.bytes(ctx, call{op: callMAC, ekt: ekt, name: algorithm, in: message})
}

// Sign is Member.Sign.
func (d *Domain) Sign(ctx context.Context, ekt EKT, algorithm string, digest []byte) ([]byte, error) {
	return d.bytes(ctx, call{op: callSign, ekt: ekt, name: algorithm, in: digest})
}

// VerifySignature is Member.VerifySignature.
func (d *Domain) VerifySignature(ctx context.Context, spec string, publicKey []byte, algorithm string, digest, signature []byte) error {
	return d.do(ctx, call{op: callVerifySignature, name: spec, second: algorithm, aad: publicKey, in: digest, extra: signature}, nil)
}

// Agree is Member.Agree.
func (d *Domain) Agree(ctx context.Context, ekt EKT, peer []byte) ([]byte, error) {
	return d.bytes(ctx, call{op: callAgree, ekt: ekt, in: peer})
}

// DecryptRSA is Member.DecryptRSA.
func (d *Domain) DecryptRSA(ctx context.Context, ekt EKT, algorithm string, ciphertext []byte) ([]byte, error) {
	return d.bytes(ctx, call{op: callDecryptRSA, ekt: ekt, name: algorithm, in: ciphertext})
}

// Sum is Member.Sum.
func (d *Domain) Sum(ctx context.Context, message []byte) (generation uint32, mac []byte, err error) {
	err = d.do(ctx, call{op: callSum, in: message}, func(r *reply) error {
		generation, mac = r.number, r.out
		return nil
	})
	return generation, mac, err
}

// Verify is Member.Verify, asked of a member that holds the generation.
func (d *Domain) Verify(ctx context.Context, generation uint32, message, mac []byte) (ok bool, err error) {
	err = d.do(ctx, call{op: callVerify, number: generation, in: message, extra: mac}, func(r *reply) error {
		ok = r.number == 1
		return nil
	})
	if errors.Is(err, ErrNoGeneration) {
		return false, nil
	}
	return ok, err
}

// Random is Member.Random.
func (d *Domain) Random(ctx context.Context, p []byte) error {
	return d.do(ctx, call{op: callRandom, number: uint32(len(p))}, func(r *reply) error {
		copy(p, r.out)
		clear(r.out)
		return nil
	})
}

// CheckValue is Member.CheckValue.
func (d *Domain) CheckValue(ctx context.Context, ekt EKT) ([]byte, error) {
	return d.bytes(ctx, call{op: callCheckValue, ekt: ekt})
}

// GenerateAES is Member.GenerateAES.
func (d *Domain) GenerateAES(ctx context.Context) (ekt EKT, made Provenance, err error) {
	err = d.do(ctx, call{op: callGenerateAES}, func(r *reply) error {
		ekt = r.ekt
		return r.read(&made)
	})
	return ekt, made, err
}

// Generate is Member.Generate.
func (d *Domain) Generate(ctx context.Context, spec string, use Use) (made Material, err error) {
	err = d.do(ctx, call{op: callGenerate, name: spec, use: use}, made.from)
	return made, err
}

// GenerateDataKeyPair is Member.GenerateDataKeyPair.
func (d *Domain) GenerateDataKeyPair(ctx context.Context, spec string) (privatePKCS8, publicSPKI []byte, err error) {
	err = d.do(ctx, call{op: callGenerateDataKeyPair, name: spec}, func(r *reply) error {
		privatePKCS8, publicSPKI = r.out, r.public
		return nil
	})
	return privatePKCS8, publicSPKI, err
}

// GenerateWrappingKey is Member.GenerateWrappingKey.
func (d *Domain) GenerateWrappingKey(ctx context.Context, spec string) (ekt EKT, publicKey []byte, err error) {
	err = d.do(ctx, call{op: callGenerateWrappingKey, name: spec}, func(r *reply) error {
		ekt, publicKey = r.ekt, r.public
		return nil
	})
	return ekt, publicKey, err
}

// Import is Member.Import.
func (d *Domain) Import(ctx context.Context, wrappingKey EKT, algorithm, spec string, use Use, wrapped []byte) (made Material, err error) {
	err = d.do(ctx, call{op: callImport, ekt: wrappingKey, name: algorithm, second: spec, use: use, in: wrapped}, made.from)
	return made, err
}

// ImportSecret is Member.ImportSecret.
func (d *Domain) ImportSecret(ctx context.Context, secret []byte) (ekt EKT, err error) {
	err = d.do(ctx, call{op: callImportSecret, in: secret}, func(r *reply) error { ekt = r.ekt; return nil })
	return ekt, err
}

// Supports is Member.Supports, of every member that can be asked.
func (d *Domain) Supports(spec string, use Use) error {
	return d.do(background, call{op: callSupports, name: spec, use: use}, nil)
}

// SupportsImport is Member.SupportsImport, of every member that can be asked.
func (d *Domain) SupportsImport(algorithm, spec string, use Use) error {
	return d.do(background, call{op: callSupportsImport, name: algorithm, second: spec, use: use}, nil)
}

// Forget is Member.Forget, on all members. It waits for none.
func (d *Domain) Forget(ekt EKT) {
	_ = d.do(background, call{op: callForget, ekt: ekt}, nil)
}

// MarkActive is Token.MarkActive, on every member's token, and on those of members
// that come or come back later.
func (d *Domain) MarkActive(ctx context.Context) error {
	return d.do(ctx, call{op: callMarkActive}, nil)
}

// Ping is Token.Ping: nil if a member can serve.
func (d *Domain) Ping(ctx context.Context) error {
	return d.do(ctx, call{op: callPing}, nil)
}

// Rewrap is Member.Rewrap, on a member that holds both generations.
func (d *Domain) Rewrap(ctx context.Context, ekt EKT, to uint32) (moved EKT, err error) {
	err = d.do(ctx, call{op: callRewrap, ekt: ekt, number: to}, func(r *reply) error { moved = r.ekt; return nil })
	return moved, err
}

// SetActive is Member.SetActive, on every member.
func (d *Domain) SetActive(ctx context.Context, generation uint32) error {
	return d.do(ctx, call{op: callSetActive, number: generation}, nil)
}

// Generations is Member.Generations.
func (d *Domain) Generations(ctx context.Context) (all []Generation, err error) {
	err = d.do(ctx, call{op: callGenerations}, func(r *reply) error { return r.read(&all) })
	return all, err
}
