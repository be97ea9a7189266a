package hsm

import (
	"context"
	"encoding/asn1"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
)

// Sign signs with the private key in ekt. algorithm is AWS's name. digest has
// the length of its hash; for ED25519_SHA_512, ED25519_PH_SHA_512 and
// ML_DSA_SHAKE_256 it is the message itself. RSA signatures have the modulus's length, ECDSA ones are
// ASN.1 DER (RFC 3279 §2.2.3).
func (d *Member) Sign(ctx context.Context, ekt EKT, algorithm string, digest []byte) ([]byte, error) {
	a, err := find(signing, algorithm, ekt)
	if err != nil {
		return nil, err
	}
	if a.hash != 0 && len(digest) != a.hash.Size() {
		return nil, fmt.Errorf("%w: a digest for %s has %d bytes, not %d", ErrArgument, algorithm, a.hash.Size(), len(digest))
	}
	signature, err := d.usePrivate(ctx, UseSign, ekt, func(epoch uint64) *request {
		r := newRequest(opSign, epoch)
		r.mechanism, r.parameters = a.mechanism, a.parameters
		r.input(nil, a.prefix, digest, nil, a.size)
		r.in = r.buf // prefix and digest
		return r
	})
	if err != nil {
		return nil, fmt.Errorf("signing by %s: %w", algorithm, refused(algorithm, a.mechanism, err))
	}
	if a.mechanism == pkcs11.CKM_ECDSA {
		return ecdsaSignature(signature)
	}
	return signature, nil
}

// usePrivate runs one request with the private key in ekt.
func (d *Member) usePrivate(ctx context.Context, use Use, ekt EKT, build func(epoch uint64) *request) ([]byte, error) {
	if ekt.class() != classPrivate {
		return nil, fmt.Errorf("%w: it holds no private key", ErrInvalidEKT)
	}
	return d.useCached(ctx, d.private, d.t.asymmetric, privateName(use, ekt), build)
}

// ecdsaSignature encodes the device's r ‖ s (PKCS#11 §2.3.1).
func ecdsaSignature(raw []byte) ([]byte, error) {
	half := len(raw) / 2
	signature, err := asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:]),
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a signature: %w", err)
	}
	return signature, nil
}

// MAC returns the HMAC of message under the generic secret in ekt. algorithm
// is AWS's name, HMAC_SHA_224, _256, _384 or _512; the MAC has 28, 32, 48 or
// 64 bytes.
func (d *Member) MAC(ctx context.Context, ekt EKT, algorithm string, message []byte) ([]byte, error) {
	a, err := find(macs, algorithm, ekt)
	if err != nil {
		return nil, err
	}
	mac, err := d.use(ctx, ekt, classGeneric, func(epoch uint64) *request {
		r := newRequest(opMAC, epoch)
		r.mechanism = a.mechanism
		r.input(nil, nil, message, nil, a.size)
		return r
	})
	if err != nil {
		return nil, fmt.Errorf("computing %s: %w", algorithm, refused(algorithm, a.mechanism, err))
	}
	return mac, nil
}

// Agree returns the x coordinate of ECDH (SP 800-56A §5.7.1.2) with peer, a
// SubjectPublicKeyInfo in DER on the key's own curve, else ErrArgument. It has
// the length of a coordinate and is the caller's to wipe.
func (d *Member) Agree(ctx context.Context, ekt EKT, peer []byte) ([]byte, error) {
	c, point, err := parsePoint(peer)
	if err != nil {
		return nil, err
	}
	// Not every device checks, and a point off the curve betrays the key.
	if _, err := c.ecdh().NewPublicKey(point); err != nil {
		return nil, fmt.Errorf("%w: its point is not on %s", ErrArgument, c.name)
	}
	parameters, err := c.parameters()
	if err != nil {
		return nil, err
	}
	if k, err := ekt.parse(); err != nil {
		return nil, err
	} else if k.keyType != pkcs11.CKK_EC {
		return nil, fmt.Errorf("%w: the key has no curve", ErrArgument)
	}
	secret, err := d.usePrivate(ctx, UseAgree, ekt, func(epoch uint64) *request {
		r := newRequest(opAgree, epoch)
		r.parameters = parameters
		r.input(nil, nil, point, nil, c.size)
		return r
	})
	if code, ok := codeOf(err); ok && code == pkcs11.CKR_DOMAIN_PARAMS_INVALID {
		return nil, fmt.Errorf("%w: the peer is on %s, the key on another curve", ErrArgument, c.name)
	}
	if err != nil {
		return nil, fmt.Errorf("agreeing on a secret: %w", refused("ECDH", pkcs11.CKM_ECDH1_DERIVE, err))
	}
	return secret, nil
}
