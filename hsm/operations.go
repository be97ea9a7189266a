package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

const (
	tagSize = 16 // bytes of a GCM tag
	macSize = 32 // bytes of an HMAC-SHA-256
)

// Encrypt seals plaintext by AES-256-GCM under the backing key in ekt. It
// returns the IV, of 12 or 16 bytes and from the source that the device takes
// (see IVSource), and the ciphertext with its 16-byte tag.
func (d *Member) Encrypt(ctx context.Context, ekt EKT, aad, plaintext []byte) (iv, sealed []byte, err error) {
	out, err := d.use(ctx, ekt, classAES, func(epoch uint64) *request {
		return sealRequest(epoch, d.t.ivs(), aad, plaintext)
	})
	if err != nil {
		return nil, nil, err
	}
	iv, sealed = splitSealed(out, len(plaintext))
	return iv, sealed, nil
}

// Decrypt opens what Encrypt returned: ciphertext and 16-byte tag. It returns
// ErrInvalidCiphertext if key, iv, aad or ciphertext is not the one that was
// sealed. The plaintext is the caller's to wipe.
func (d *Member) Decrypt(ctx context.Context, ekt EKT, iv, aad, ciphertext []byte) ([]byte, error) {
	if err := checkIV(iv); err != nil {
		return nil, err
	}
	if len(ciphertext) < tagSize {
		return nil, fmt.Errorf("%w: it is shorter than a tag", ErrInvalidCiphertext)
	}
	plaintext, err := d.use(ctx, ekt, classAES, func(epoch uint64) *request {
		return openRequest(epoch, iv, aad, ciphertext)
	})
	if code, ok := codeOf(err); ok {
		return nil, d.blame(ctx, code, err)
	}
	return plaintext, err
}

func openRequest(epoch uint64, iv, aad, ciphertext []byte) *request {
	r := newRequest(opDecrypt, epoch)
	r.input(iv, aad, ciphertext, nil, len(ciphertext))
	return r
}

func hmacRequest(epoch uint64, message []byte) *request {
	r := newRequest(opHMAC, epoch)
	r.input(nil, nil, message, nil, macSize)
	return r
}

// blame decides whether a refused decryption is the ciphertext's fault.
func (d *Member) blame(ctx context.Context, code uint, err error) error {
	switch classify(code) {
	case classForged:
		return fmt.Errorf("%w (%s)", ErrInvalidCiphertext, codeName(code))
	case classData:
	default:
		return err
	}
	healthy := false
	probeErr := d.onKeeper(ctx, func(s *session, keys *domainKeys) error {
		healthy = s.healthy(keys)
		return nil
	})
	switch {
	case probeErr != nil:
		return errors.Join(err, probeErr)
	case !healthy:
		return fmt.Errorf("%w: %w, and the known-answer probe fails too", ErrUnavailable, err)
	}
	return fmt.Errorf("%w (%s)", ErrInvalidCiphertext, codeName(code))
}

// checkIV refuses what some devices would take: SoftHSM accepts an empty IV.
func checkIV(iv []byte) error {
	if len(iv) != 12 && len(iv) != 16 {
		return fmt.Errorf("%w: an IV has 12 or 16 bytes, not %d", ErrArgument, len(iv))
	}
	return nil
}

// HMAC returns HMAC-SHA-256 (32 bytes) of message under the generic secret in
// ekt.
func (d *Member) HMAC(ctx context.Context, ekt EKT, message []byte) ([]byte, error) {
	return d.use(ctx, ekt, classGeneric, func(epoch uint64) *request {
		return hmacRequest(epoch, message)
	})
}

// use runs one request with the secret key in ekt.
func (d *Member) use(ctx context.Context, ekt EKT, c keyClass, build func(epoch uint64) *request) ([]byte, error) {
	if ekt.class() != c {
		return nil, fmt.Errorf("%w: it holds no %s key", ErrInvalidEKT, c)
	}
	return d.useCached(ctx, d.cache, d.t.lane, ekt, build)
}

// useCached runs one request with a cached key, again if its handle turned out
// to be stale or the device was lost meanwhile.
func (d *Member) useCached(ctx context.Context, cache *handleCache, on *lane, name EKT, build func(epoch uint64) *request) ([]byte, error) {
	var p patience
	reloaded := false
	for {
		h, err := cache.acquire(ctx, name)
		if err == nil {
			r := build(h.epoch)
			r.key, r.handle = h.object, h
			o := r.op
			out, doErr := on.do(ctx, r) // releases h
			if doErr == nil {
				return out, nil
			}
			err = doErr
			if suspicious(o, err) {
				h.drop()
				if !reloaded && !errors.Is(err, errStale) {
					reloaded = true
					continue
				}
			}
		}
		if err := p.again(ctx, d.t, err); err != nil {
			return nil, settled(err)
		}
	}
}

// stale says whether the domain's own handles may be.
func stale(err error) bool {
	return isClass(err, classHandle)
}

// Forget has the unwrapped copy of ekt destroyed, if the token holds one: its
// key was deleted, or has changed. A later use unwraps it again.
func (d *Member) Forget(ekt EKT) {
	d.cache.discard(ekt)
	if ekt.class() == classPrivate {
		for use := range useFlags {
			d.private.discard(privateName(use, ekt))
		}
	}
}

// checkMessage is what check values are the MAC of.
var checkMessage = []byte("Trent check value 1")

// CheckValue identifies key material without giving any of it away: the CMAC
// (AES, 16 bytes) or HMAC (generic secret; with SHA-256, 32 bytes, or another
// hash if the key is shorter or longer than that takes) of a constant, computed
// in the HSM. Equal keys have equal values. It is never the classic
// check value, which is the base of GCM's authentication key.
func (d *Member) CheckValue(ctx context.Context, ekt EKT) ([]byte, error) {
	var value []byte
	err := d.onMaker(ctx, func(s *session, keys *domainKeys) (err error) {
		value, err = s.checkValue(keys, ekt)
		return err
	})
	if err != nil {
		return nil, err // value may still be written
	}
	return value, nil
}

// Opens returns nil if the HSM opens the EKT. What it opens is a session object
// that is used for a check value, or in the case of a private key for nothing,
// and destroyed.
func (d *Member) Opens(ctx context.Context, ekt EKT) error {
	ekt = bytes.Clone(ekt) // the caller may have gone
	k, err := ekt.parse()
	if err != nil {
		return err
	}
	return d.onMaker(ctx, func(s *session, keys *domainKeys) error {
		if k.class != classPrivate {
			_, err := s.checkValue(keys, ekt)
			return err
		}
		return s.opens(keys, k)
	})
}

// opens unwraps for nothing.
func (s *session) opens(keys *domainKeys, k keyToken) error {
	object, err := s.unwrapFor(keys, k)
	if err == nil {
		s.destroy(object)
	}
	return err
}

// checkHMAC chooses a hash whose digest is not longer than the key, which some
// devices insist on, and whose block is not shorter, so that zeros with which
// others pad the key change nothing.
func checkHMAC(length int) (mechanism uint, size int) {
	switch {
	case length < 32:
		return pkcs11.CKM_SHA224_HMAC, 28
	case length <= 64:
		return pkcs11.CKM_SHA256_HMAC, macSize
	}
	return pkcs11.CKM_SHA512_HMAC, 64
}

func (s *session) checkValue(keys *domainKeys, ekt EKT) ([]byte, error) {
	k, err := ekt.parse()
	if err != nil {
		return nil, err
	}
	mechanism, size := uint(pkcs11.CKM_AES_CMAC), 16
	switch k.class {
	case classGeneric:
		mechanism, size = checkHMAC(k.length)
	case classPrivate:
		return nil, fmt.Errorf("%w: a private key has a public key instead of a check value", ErrArgument)
	}
	object, err := s.unwrapFor(keys, k, pkcs11.CKA_SIGN)
	if err != nil {
		return nil, err
	}
	defer s.destroy(object)
	return s.wholeMAC("computing the check value", mechanism, object, checkMessage, size)
}

// longestMAC is HMAC-SHA-512's length in bytes.
const longestMAC = 64

// mac has the device compute a MAC of at most so many bytes.
func (s *session) mac(doing string, mechanism uint, key pkcs11.ObjectHandle, message []byte, most int) ([]byte, error) {
	out := make([]byte, most)
	n, code := s.t.module.native.sign(mechanism, s.handle, key, message, out)
	return out[:n], codeError(doing, code)
}

// wholeMAC is mac for a MAC whose length is known.
func (s *session) wholeMAC(doing string, mechanism uint, key pkcs11.ObjectHandle, message []byte, size int) ([]byte, error) {
	mac, err := s.mac(doing, mechanism, key, message, size)
	if err == nil && len(mac) != size {
		err = codeError(doing, ckrWrongLength)
	}
	return mac, err
}

// Random fills p from the HSM's generator.
func (d *Member) Random(ctx context.Context, p []byte) error { return d.t.random(ctx, p) }

// randomChunk is how much one call asks for.
const randomChunk = 4096

func (t *Token) random(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), randomChunk)
		out, err := t.lane.doFresh(ctx, t, func(epoch uint64) *request {
			r := newRequest(opRandom, epoch)
			r.input(nil, nil, nil, nil, n)
			return r
		})
		if err != nil {
			return err
		}
		p = p[copy(p, out):]
		clear(out)
	}
	return nil
}

// doFresh is do for calls that need no key of their own epoch.
func (l *lane) doFresh(ctx context.Context, t *Token, build func(epoch uint64) *request) ([]byte, error) {
	var p patience
	for {
		out, err := l.do(ctx, build(t.epoch.Load()))
		if err == nil {
			return out, nil
		}
		if err := p.again(ctx, t, err); err != nil {
			return nil, settled(err)
		}
	}
}

// runFresh is doFresh for f. If ctx ends first f still runs to its end and what
// it returns is dropped, so f must not touch the caller's buffers and must clean
// up after itself.
func (l *lane) runFresh(ctx context.Context, t *Token, f func(*session) error) error {
	_, err := l.doFresh(ctx, t, func(epoch uint64) *request {
		r := newRequest(opFunc, epoch)
		r.fn = f
		return r
	})
	return err
}

// Sum returns HMAC-SHA-256 (32 bytes) of message under the domain's MAC key,
// and that key's generation. It seals database rows and audit batches.
func (d *Member) Sum(ctx context.Context, message []byte) (generation uint32, mac []byte, err error) {
	keys, err := d.current(ctx)
	if err != nil {
		return 0, nil, err
	}
	if mac, err = d.useMACKey(ctx, keys.Number, opHMAC, message, nil); err != nil {
		return 0, nil, err
	}
	return keys.Number, mac, nil
}

// Verify checks what Sum returned, in the HSM. It answers false only if
// message, generation or mac is not what was sealed; an error says nothing
// about them.
func (d *Member) Verify(ctx context.Context, generation uint32, message, mac []byte) (ok bool, err error) {
	ok, err = d.verify(ctx, generation, message, mac)
	if errors.Is(err, ErrNoGeneration) {
		return false, nil
	}
	return ok, err
}

// verify is Verify, but ErrNoGeneration of a generation whose MAC key this token
// has not: another member may.
func (d *Member) verify(ctx context.Context, generation uint32, message, mac []byte) (ok bool, err error) {
	if len(mac) != macSize {
		return false, nil
	}
	// A device that used another key, once, must not make a row look forged.
	for range 2 {
		_, err = d.useMACKey(ctx, generation, opVerify, message, mac)
		code, refused := codeOf(err)
		if !refused || code != pkcs11.CKR_SIGNATURE_INVALID && code != pkcs11.CKR_SIGNATURE_LEN_RANGE {
			return err == nil, err
		}
	}
	return false, nil
}

func (d *Member) useMACKey(ctx context.Context, generation uint32, o op, message, mac []byte) ([]byte, error) {
	var p patience
	looked := false
	for {
		keys, err := d.current(ctx)
		if err != nil {
			return nil, err
		}
		g := keys.generations[generation]
		if g == nil && !looked && d.newer(ctx, generation) {
			looked = true
			continue
		}
		if g == nil || !g.MAC {
			return nil, absentGeneration{generation, errNotFound}
		}
		r := newRequest(o, keys.epoch)
		r.key = g.mac
		size := 0
		if o == opHMAC {
			size = macSize
		}
		r.input(nil, nil, message, mac, size)
		out, err := d.t.sealing.do(ctx, r)
		if err == nil {
			return out, nil
		}
		if stale(err) {
			d.forgetKeys(keys)
		}
		if err := p.again(ctx, d.t, err); err != nil {
			return nil, settled(err)
		}
	}
}
