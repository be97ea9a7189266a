package hsm

import (
	"context"
	"crypto"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"
)

// oaepParameters is CK_RSA_PKCS_OAEP_PARAMS without label.
func oaepParameters(algorithm string) []byte {
	h := hashes[oaep[algorithm]]
	return ulongs(h.mechanism, h.mgf, pkcs11.CKZ_DATA_SPECIFIED, 0, 0)
}

// lacksHash are the answers of a device to an OAEP hash that it does not have.
// SoftHSM's is CKR_ARGUMENTS_BAD.
var lacksHash = []uint{pkcs11.CKR_ARGUMENTS_BAD, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_MECHANISM_INVALID}

// DecryptRSA opens an RSA-OAEP ciphertext (RFC 8017 §7.1.2, no label).
// algorithm is RSAES_OAEP_SHA_1 or RSAES_OAEP_SHA_256. It returns
// ErrInvalidCiphertext for whatever does not open. The plaintext is the
// caller's to wipe.
//
// Where the device lacks the hash, it does the RSA and the padding is taken
// off here: what comes out is the caller's own data, never a key of ours.
func (d *Member) DecryptRSA(ctx context.Context, ekt EKT, algorithm string, ciphertext []byte) ([]byte, error) {
	hash, ok := oaep[algorithm]
	if !ok {
		return nil, fmt.Errorf("%w: there is no algorithm %q here", ErrArgument, algorithm)
	}
	if k, err := ekt.parse(); err != nil {
		return nil, err
	} else if k.keyType != pkcs11.CKK_RSA {
		return nil, fmt.Errorf("%w: the key is not an RSA key", ErrArgument)
	}
	if len(ciphertext) < 2048/8 || len(ciphertext) > maxModulus {
		return nil, fmt.Errorf("%w: it has not the length of the modulus", ErrInvalidCiphertext)
	}
	var plaintext []byte
	lacking := d.tried.ask("decrypt "+algorithm, func() (err error) {
		plaintext, err = d.decryptRSA(ctx, ekt, pkcs11.CKM_RSA_PKCS_OAEP, oaepParameters(algorithm), ciphertext)
		if code, ok := codeOf(err); ok && slices.Contains(lacksHash, code) {
			return &UnsupportedError{algorithm, mechanismName(pkcs11.CKM_RSA_PKCS_OAEP), codeName(code)}
		}
		return err
	})
	var unsupported *UnsupportedError
	switch {
	case errors.As(lacking, &unsupported):
		plaintext, err := d.decryptRaw(ctx, ekt, hash, ciphertext)
		if errors.Is(err, errPadding) { // believed if it holds for the key loaded anew
			d.private.discard(privateName(UseEncrypt, ekt))
			plaintext, err = d.decryptRaw(ctx, ekt, hash, ciphertext)
		}
		return plaintext, err
	case lacking != nil || plaintext != nil:
		return plaintext, lacking
	}
	return d.decryptRSA(ctx, ekt, pkcs11.CKM_RSA_PKCS_OAEP, oaepParameters(algorithm), ciphertext)
}

func (d *Member) decryptRSA(ctx context.Context, ekt EKT, mechanism uint, parameters, ciphertext []byte) ([]byte, error) {
	out, err := d.usePrivate(ctx, UseEncrypt, ekt, func(epoch uint64) *request {
		r := newRequest(opDecryptRSA, epoch)
		r.mechanism, r.parameters = mechanism, parameters
		r.input(nil, nil, ciphertext, nil, maxModulus)
		return r
	})
	if code, ok := codeOf(err); ok && !slices.Contains(lacksHash, code) {
		err = d.blame(ctx, code, err)
	}
	if err != nil {
		return nil, fmt.Errorf("decrypting by RSA: %w", err)
	}
	return out, nil
}

func (d *Member) decryptRaw(ctx context.Context, ekt EKT, hash crypto.Hash, ciphertext []byte) ([]byte, error) {
	raw, err := d.decryptRSA(ctx, ekt, pkcs11.CKM_RSA_X_509, nil, ciphertext)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	if len(raw) > len(ciphertext) {
		return nil, fmt.Errorf("%w: it has not the length of the modulus", ErrInvalidCiphertext)
	}
	padded := make([]byte, len(ciphertext))
	defer clear(padded)
	copy(padded[len(padded)-len(raw):], raw) // some devices drop leading zeros
	message, ok := unpadOAEP(hash, padded)
	if !ok {
		return nil, errPadding
	}
	return message, nil
}

var errPadding = fmt.Errorf("%w: its padding is wrong", ErrInvalidCiphertext)

// unpadOAEP takes the padding off padded, in place (RFC 8017 §7.1.2, steps 3).
// Its time depends on lengths only until the answer is known as a whole: what
// is wrong must not show (Manger's attack).
func unpadOAEP(hash crypto.Hash, padded []byte) (message []byte, ok bool) {
	size := hash.Size()
	if len(padded) < 2*size+2 {
		return nil, false
	}
	first, seed, db := padded[0], padded[1:1+size], padded[1+size:]
	mask(hash, seed, db)
	mask(hash, db, seed)

	empty := hash.New().Sum(nil) // of the label
	good := subtle.ConstantTimeByteEq(first, 0) & subtle.ConstantTimeCompare(db[:size], empty)
	looking, start := 1, 0 // for the 1 after the zeros
	rest := db[size:]
	for i, b := range rest {
		one := subtle.ConstantTimeByteEq(b, 1)
		zero := subtle.ConstantTimeByteEq(b, 0)
		start = subtle.ConstantTimeSelect(looking&one, i+1, start)
		good &= 1 ^ looking&(1^one)&(1^zero)
		looking &= 1 ^ one
	}
	if good&(1^looking) != 1 {
		return nil, false
	}
	return append([]byte{}, rest[start:]...), true
}

// mask is out ⊕ MGF1(seed) (RFC 8017 §B.2.1).
func mask(hash crypto.Hash, out, seed []byte) {
	h := hash.New()
	var counter [4]byte
	var block []byte
	for i := 0; len(out) > 0; i++ {
		h.Reset()
		h.Write(seed)
		binary.BigEndian.PutUint32(counter[:], uint32(i))
		h.Write(counter[:])
		block = h.Sum(block[:0])
		out = out[subtle.XORBytes(out, out, block):]
	}
	clear(block)
}
