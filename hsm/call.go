package hsm

import (
	"context"
	"encoding/json"
	"fmt"
)

// callOp says what a call asks for. The numbers go between two processes of
// the same binary only, so that they may change from one release to the next.
type callOp uint8

const (
	callNone callOp = iota
	callEncrypt
	callDecrypt
	callHMAC
	callCheckValue
	callRandom
	callSum
	callVerify
	callSign
	callMAC
	callAgree
	callDecryptRSA
	callVerifySignature
	callGenerateAES
	callGenerate
	callGenerateDataKeyPair
	callGenerateWrappingKey
	callImport
	callImportSecret
	callSupports
	callSupportsImport
	callForget
	callMarkActive
	callPing
	callInfo
	callRewrap
	callSetActive
	callGenerations
	callSetProofs
	callEnrolmentKey
	callMakeShared
	callTakeShared
	callDropEnrolmentKey
	callDestroyGeneration
	callRefusePIN // it was refused elsewhere: no further try
	callOpen      // of a worker, before all others: see worker.open
	callMetrics   // of a worker
	callCount
)

// call is one demand on a member, wherever it runs. Which fields count is up
// to the operation: see Member.do. Its slices are the caller's; they are not
// kept after do returns.
type call struct {
	op     callOp
	use    Use
	number uint32 // a generation, or how many random bytes
	ekt    EKT
	// name is AWS's name of a key spec or algorithm, second another one where
	// both are needed.
	name, second string
	iv, aad, in  []byte
	extra        []byte // a second input: a MAC, a signature, a public key
}

// reply is what a call came to. Its slices are the asker's, who wipes out.
type reply struct {
	number uint32 // a generation, or a truth value
	ekt    EKT
	out    []byte // may be secret
	public []byte
	detail []byte // JSON of what is asked seldom and is not secret
}

// caller does calls: a member in this process, or one in a worker process.
// On error nothing in the reply counts.
type caller interface {
	do(ctx context.Context, c *call, r *reply) error
}

func (r *reply) describe(v any) (err error) {
	if r.detail, err = json.Marshal(v); err != nil {
		return fmt.Errorf("describing an answer: %w", err)
	}
	return nil
}

func (r *reply) read(v any) error {
	if err := json.Unmarshal(r.detail, v); err != nil {
		return fmt.Errorf("reading an answer's description: %w", err)
	}
	return nil
}

func (r *reply) setMaterial(m Material) error {
	r.ekt, r.public, r.out = m.EKT, m.PublicKey, m.CheckValue
	return r.describe(m.Provenance)
}

func (m *Material) from(r *reply) error {
	*m = Material{EKT: r.ekt, PublicKey: r.public, CheckValue: r.out}
	return r.read(&m.Provenance)
}

// do implements caller: the calls that every request makes here, the others
// in doSeldom.
func (d *Member) do(ctx context.Context, c *call, r *reply) (err error) {
	switch c.op {
	case callEncrypt:
		r.public, r.out, err = d.Encrypt(ctx, c.ekt, c.aad, c.in)
	case callDecrypt:
		r.out, err = d.Decrypt(ctx, c.ekt, c.iv, c.aad, c.in)
	case callHMAC:
		r.out, err = d.HMAC(ctx, c.ekt, c.in)
	case callMAC:
		r.out, err = d.MAC(ctx, c.ekt, c.name, c.in)
	case callSign:
		r.out, err = d.Sign(ctx, c.ekt, c.name, c.in)
	case callAgree:
		r.out, err = d.Agree(ctx, c.ekt, c.in)
	case callDecryptRSA:
		r.out, err = d.DecryptRSA(ctx, c.ekt, c.name, c.in)
	case callVerifySignature:
		err = d.VerifySignature(ctx, c.name, c.aad, c.second, c.in, c.extra)
	case callSum:
		r.number, r.out, err = d.Sum(ctx, c.in)
	case callVerify:
		var ok bool
		if ok, err = d.verify(ctx, c.number, c.in, c.extra); ok {
			r.number = 1
		}
	case callRandom:
		r.out = make([]byte, c.number)
		err = d.Random(ctx, r.out)
	default:
		err = d.doSeldom(ctx, c, r)
	}
	return err
}

// doSeldom has what makes keys, and what else is done with one seldom.
func (d *Member) doSeldom(ctx context.Context, c *call, r *reply) (err error) {
	switch c.op {
	case callGenerateAES:
		var made Provenance
		if r.ekt, made, err = d.GenerateAES(ctx); err == nil {
			err = r.describe(made)
		}
	case callGenerate:
		var m Material
		if m, err = d.Generate(ctx, c.name, c.use); err == nil {
			err = r.setMaterial(m)
		}
	case callGenerateDataKeyPair:
		r.out, r.public, err = d.GenerateDataKeyPair(ctx, c.name)
	case callGenerateWrappingKey:
		r.ekt, r.public, err = d.GenerateWrappingKey(ctx, c.name)
	case callImport:
		var m Material
		if m, err = d.Import(ctx, c.ekt, c.name, c.second, c.use, c.in); err == nil {
			err = r.setMaterial(m)
		}
	case callImportSecret:
		r.ekt, err = d.ImportSecret(ctx, c.in)
	case callCheckValue:
		r.out, err = d.CheckValue(ctx, c.ekt)
	case callSupports:
		err = d.Supports(c.name, c.use)
	case callSupportsImport:
		err = d.SupportsImport(c.name, c.second, c.use)
	case callForget:
		d.Forget(c.ekt)
	case callRewrap:
		r.ekt, err = d.Rewrap(ctx, c.ekt, c.number)
	default:
		err = d.doToken(ctx, c, r)
	}
	return err
}

// doToken has what concerns the token and the generations that it holds.
func (d *Member) doToken(ctx context.Context, c *call, r *reply) (err error) {
	switch c.op {
	case callMarkActive:
		err = d.MarkActive(ctx)
	case callPing:
		err = d.t.Ping(ctx)
	case callRefusePIN:
		d.t.cfg.PIN.refuse()
	case callInfo:
		err = r.describe(d.t.Info())
	case callSetActive:
		err = d.SetActive(ctx, c.number)
	case callGenerations:
		var all []Generation
		if all, err = d.Generations(ctx); err == nil {
			err = r.describe(all)
		}
	default:
		err = d.doEnrolment(ctx, c, r)
	}
	return err
}
