package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/failpoint"
)

// Provenance says where a backing key was made and what the device attests
// about it.
type Provenance struct {
	Mechanism        string `json:"mechanism"`
	Local            bool   `json:"local"`
	AlwaysSensitive  bool   `json:"alwaysSensitive"`
	NeverExtractable bool   `json:"neverExtractable"` // false: it had to be wrapped
	Device           Info   `json:"device"`
	Generation       uint32 `json:"domainKeyGeneration"`
	Profile          string `json:"profile"`
}

func mechanism(m uint) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, nil)}
}

// GenerateAES makes an AES-256 backing key in the HSM and returns it wrapped.
func (d *Member) GenerateAES(ctx context.Context) (EKT, Provenance, error) {
	sp := specs["SYMMETRIC_DEFAULT"]
	var ekt EKT
	var made Provenance
	err := d.onMaker(ctx, func(s *session, keys *domainKeys) (err error) {
		ekt, made, err = s.generateSecret(keys, sp)
		return err
	})
	if err != nil {
		return nil, Provenance{}, fmt.Errorf("generating a backing key: %w", err)
	}
	return ekt, made, nil
}

// generateSecret makes a secret backing key. The key itself is destroyed: use
// goes through an unwrapped copy that cannot be extracted.
func (s *session) generateSecret(keys *domainKeys, sp spec) (EKT, Provenance, error) {
	p11 := s.t.module.p11
	key, err := p11.GenerateKey(s.handle, mechanism(sp.generate), keys.protected(backingKeyTemplate(sp.keyType, sp.size)))
	if err != nil {
		return nil, Provenance{}, deviceError("generating", err)
	}
	defer s.destroy(key)
	failpoint.Hit("hbk.generated")
	made, err := s.provenance(keys, key, sp.generate)
	if err != nil {
		return nil, Provenance{}, err
	}
	ekt, err := s.export(keys.generationKeys, sp.class, sp.keyType, sp.size, key)
	return ekt, made, err
}

func (s *session) provenance(keys *domainKeys, key pkcs11.ObjectHandle, mechanism uint) (Provenance, error) {
	made := Provenance{
		Mechanism: mechanismName(mechanism), Device: s.t.info, Generation: keys.Number, Profile: string(keys.Profile),
	}
	var err error
	for kind, to := range map[uint]*bool{
		pkcs11.CKA_LOCAL:             &made.Local,
		pkcs11.CKA_ALWAYS_SENSITIVE:  &made.AlwaysSensitive,
		pkcs11.CKA_NEVER_EXTRACTABLE: &made.NeverExtractable,
	} {
		if *to, err = s.flag(key, kind, true); err != nil {
			return Provenance{}, fmt.Errorf("recording provenance: %w", err)
		}
	}
	return made, nil
}

// ImportSecret wraps a secret of 32 to 64 bytes as a generic secret, for
// HMAC. It is the one key that begins in this process's memory; the copy made
// here is wiped, the caller wipes its own.
func (d *Member) ImportSecret(ctx context.Context, secret []byte) (EKT, error) {
	if len(secret) < minSecret || len(secret) > maxSecret {
		return nil, fmt.Errorf("%w: a secret has %d to %d bytes", ErrArgument, minSecret, maxSecret)
	}
	var ekt EKT
	err := d.run(ctx, d.t.maker, secret, func(s *session, keys *domainKeys, held []byte) error {
		key, code := s.t.module.native.importSecret(s.handle, held)
		if code != pkcs11.CKR_OK {
			return &DeviceError{Doing: "creating the object", Code: code}
		}
		defer s.destroy(key)
		var err error
		ekt, err = s.export(keys.generationKeys, classGeneric, pkcs11.CKK_GENERIC_SECRET, len(held), key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("importing a secret: %w", err)
	}
	return ekt, nil
}

// run runs f on a session of the lane with the handles of the epoch and a copy
// of secret, which is wiped when f is done or is not to run any more. If ctx
// ends first f still runs to its end, so f must clean up after itself. f runs
// again if the device was lost meanwhile, or if it needs a generation that
// another host has just made.
func (d *Member) run(ctx context.Context, on *lane, secret []byte, f func(*session, *domainKeys, []byte) error) error {
	var p patience
	looked := false
	for {
		keys, err := d.current(ctx)
		if err != nil {
			return err
		}
		r := newRequest(opFunc, keys.epoch)
		r.input(nil, nil, secret, nil, 0)
		r.fn = func(s *session) error { return f(s, keys, r.in) }
		if _, err = on.do(ctx, r); err == nil {
			return nil
		}
		if absent := new(absentGeneration); errors.As(err, absent) && !looked && d.newer(ctx, absent.number) {
			looked = true
			continue
		}
		if stale(err) {
			d.forgetKeys(keys)
		}
		if err := p.again(ctx, d.t, err); err != nil {
			return settled(err)
		}
	}
}

// onKeeper runs f on the keeper's worker with the handles of the epoch.
func (d *Member) onKeeper(ctx context.Context, f func(*session, *domainKeys) error) error {
	return d.run(ctx, d.t.keeper, nil, func(s *session, keys *domainKeys, _ []byte) error { return f(s, keys) })
}

// export wraps key into an EKT of the generation. Its caller destroys the key.
func (s *session) export(g *generationKeys, c keyClass, keyType uint, length int, key pkcs11.ObjectHandle) (EKT, error) {
	way := g.way(c)
	wrapped, err := s.wrap(way, g.wrap[c], key)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("hbk.wrapped")
	ekt := keyToken{generation: g.Number, class: c, mechanism: way.mechanism, keyType: keyType, length: length, wrapped: wrapped}.encode()
	if _, err := ekt.parse(); err != nil {
		return nil, fmt.Errorf("wrapping: the device's output of %d bytes is of no known form", len(wrapped))
	}
	return ekt, nil
}

// maxWrapped is more than the longest private key has bytes when it is wrapped.
const maxWrapped = 2 * maxPKCS8

func (s *session) wrap(way wrapWay, wrapper, key pkcs11.ObjectHandle) ([]byte, error) {
	return s.wrapBy(way.mechanism, nil, wrapper, key)
}

func (s *session) wrapBy(mechanism uint, parameters []byte, wrapper, key pkcs11.ObjectHandle) ([]byte, error) {
	out := make([]byte, maxWrapped)
	n, code := s.t.module.native.wrap(mechanism, parameters, s.handle, wrapper, key, out)
	if code != pkcs11.CKR_OK {
		return nil, &DeviceError{Doing: "wrapping", Code: code}
	}
	return bytes.Clone(out[:n]), nil
}

func (s *session) unwrap(way wrapWay, wrapper pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return s.unwrapLength(way, wrapper, wrapped, len(wrapped)-8, template)
}

// unwrapLength is unwrap for a secret whose true length, in bytes, the wrapped
// form does not tell. PKCS#11 §5.14 forbids CKA_VALUE_LEN here, yet some
// devices want it: the first such answer is remembered.
func (s *session) unwrapLength(way wrapWay, wrapper pkcs11.ObjectHandle, wrapped []byte, length int, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	s.t.stats.unwraps.Add(1)
	m, p11 := mechanism(way.mechanism), s.t.module.p11
	sized := func() (pkcs11.ObjectHandle, error) {
		object, err := p11.UnwrapKey(s.handle, m, wrapper, wrapped, append(slices.Clone(template), attr(pkcs11.CKA_VALUE_LEN, length)))
		return object, deviceError("unwrapping", err)
	}
	if way.class != classPrivate && s.t.wantsLength.Load() {
		return sized()
	}
	object, err := p11.UnwrapKey(s.handle, m, wrapper, wrapped, template)
	if isCode(err, pkcs11.CKR_TEMPLATE_INCOMPLETE) && way.class != classPrivate {
		object, err := sized()
		if err == nil {
			s.t.wantsLength.Store(true)
		}
		return object, err
	}
	return object, deviceError("unwrapping", err)
}

// unwrapFor brings an EKT back for the given uses.
func (s *session) unwrapFor(keys *domainKeys, k keyToken, uses ...uint) (pkcs11.ObjectHandle, error) {
	template := useTemplate(k.keyType, uses...)
	if k.class == classPrivate {
		template = privateUseTemplate(k.keyType, uses...)
	}
	return s.unwrapWith(keys, k, template)
}

// unwrapWith tells a bad EKT from a sick device, and believes no device that
// only once calls it bad.
func (s *session) unwrapWith(keys *domainKeys, k keyToken, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	g, err := keys.of(k.generation)
	if err != nil {
		return 0, err
	}
	way, err := g.wayOf(k)
	if err != nil {
		return 0, err
	}
	var object pkcs11.ObjectHandle
	var code uint
	for range 2 {
		object, err = s.unwrapLength(way, g.wrap[k.class], k.wrapped, k.length, g.protected(template))
		var refused bool
		code, refused = codeOf(err)
		if c := classify(code); !refused || c != classData && c != classForged {
			return object, err
		}
		s.t.stats.failed(code)
	}
	if s.healthy(keys) {
		return 0, fmt.Errorf("%w (%s)", ErrInvalidEKT, codeName(code))
	}
	return 0, fmt.Errorf("%w: %w, and the known-answer probe fails too", ErrUnavailable, err)
}

// healthy asks for the known answer. A device that does not give it is
// recovered.
func (s *session) healthy(keys *domainKeys) bool {
	err := s.answers(keys.probe)
	if err == nil {
		return true
	}
	if code, ok := codeOf(err); ok {
		s.t.stats.failed(code)
	}
	s.t.ask(keys.epoch, remedyRestart, err)
	return false
}

func (s *session) answers(p probe) error {
	plain := make([]byte, len(p.sealed))
	n, code := s.t.module.native.gcm(true, s.handle, p.key, p.iv, nil, p.sealed, plain)
	switch {
	case code != pkcs11.CKR_OK:
		return &DeviceError{Doing: "asking for a known answer", Code: code}
	case !p.passed(plain[:n]):
		return errProbe
	}
	return nil
}

var errProbe = errors.New("the device decrypts what it sealed to something else")

// uses of an unwrapped key in the handle cache, by class. Check values are
// made by copies of their own, so that no copy can do everything.
var classUses = map[keyClass][]uint{
	classAES:     {pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT},
	classGeneric: {pkcs11.CKA_SIGN},
}

// load is the handle cache's: it must not depend on any caller's context.
func (d *Member) load(ekt EKT, victim *handle) (object pkcs11.ObjectHandle, epoch uint64, err error) {
	k, err := ekt.parse()
	if err == nil && len(classUses[k.class]) == 0 {
		err = fmt.Errorf("%w: %s keys have no use here", ErrArgument, k.class)
	}
	return d.loadFor(k, err, victim, classUses[k.class])
}

// loadPrivate is load for names that privateName made.
func (d *Member) loadPrivate(name EKT, victim *handle) (object pkcs11.ObjectHandle, epoch uint64, err error) {
	k, err := name[1:].parse()
	return d.loadFor(k, err, victim, useFlags[Use(name[0])])
}

// privateName is a use and an EKT.
func privateName(use Use, ekt EKT) EKT {
	return append(EKT{byte(use)}, ekt...)
}

func (d *Member) loadFor(k keyToken, err error, victim *handle, uses []uint) (object pkcs11.ObjectHandle, epoch uint64, _ error) {
	keys, currentErr := d.current(background)
	if currentErr == nil && keys.generations[k.generation] == nil && d.newer(background, k.generation) {
		keys, currentErr = d.current(background)
	}
	if err = errors.Join(err, currentErr); err != nil {
		d.destroyIfAny(victim)
		return 0, 0, err
	}
	tried := false
	err = d.t.onKeeperWaiting(func(s *session) error {
		tried = true
		if victim != nil && victim.epoch == s.t.epoch.Load() {
			s.destroy(victim.object)
		}
		if epoch = s.t.epoch.Load(); keys.epoch != epoch {
			return errStale
		}
		object, err = s.unwrapFor(keys, k, uses...)
		return err
	})
	if !tried {
		d.destroyIfAny(victim)
	}
	if stale(err) {
		d.forgetKeys(keys)
	}
	return object, epoch, err
}

func (d *Member) destroyIfAny(h *handle) {
	if h != nil {
		d.destroy(h)
	}
}

// destroy is the handle cache's; it may be called by a worker, so it waits for
// nothing.
func (d *Member) destroy(h *handle) {
	go func() {
		if h.epoch != d.t.epoch.Load() {
			return // it died with its epoch
		}
		_ = d.t.onKeeperWaiting(func(s *session) error {
			if h.epoch == s.t.epoch.Load() {
				s.destroy(h.object)
			}
			return nil
		})
	}()
}
