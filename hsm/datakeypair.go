package hsm

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// maxPKCS8 is more than the longest private key has bytes, RSA_4096's.
const maxPKCS8 = 4096

// GenerateDataKeyPair makes a key pair for the caller of AWS's
// GenerateDataKeyPair: a PKCS #8 PrivateKeyInfo and a SubjectPublicKeyInfo in
// DER. The HSM keeps nothing. The private half is the caller's to wipe. It
// returns *UnsupportedError for what the device cannot make.
func (d *Member) GenerateDataKeyPair(ctx context.Context, spec string) (privatePKCS8, publicSPKI []byte, err error) {
	sp, ok := specs[spec]
	if !ok || sp.class != classPrivate {
		return nil, nil, fmt.Errorf("%w: %s is no spec of a key pair", ErrArgument, spec)
	}
	var spki []byte
	private, err := d.t.maker.doFresh(ctx, d.t, func(epoch uint64) *request {
		r := newRequest(opFunc, epoch)
		r.out = make([]byte, maxPKCS8) // wiped if the caller has gone
		r.fn = func(s *session) (err error) {
			r.length, spki, err = s.makeDataKeyPair(spec, sp, r.out)
			return err
		}
		return r
	})
	if err != nil {
		return nil, nil, fmt.Errorf("generating a data key pair of %s: %w", spec, err) // spki may still be written
	}
	return private, spki, nil
}

// makeDataKeyPair writes the private half to out.
func (s *session) makeDataKeyPair(name string, sp spec, out []byte) (length int, spki []byte, err error) {
	if sp.privateAttributes() == nil {
		return 0, nil, &UnsupportedError{name, mechanismName(sp.generate), "the form of its private key is not settled"}
	}
	if err := s.lacksMechanism(name, sp, sp.generate, pkcs11.CKF_GENERATE_KEY_PAIR); err != nil {
		return 0, nil, err
	}
	readable := altered(privateBackingTemplate(sp.keyType), attr(pkcs11.CKA_SENSITIVE, false))
	public, private, err := s.generatePair(sp, UseSign, readable)
	if err != nil {
		return 0, nil, refused(name, sp.generate, err)
	}
	defer s.destroy(public)
	defer s.destroy(private)
	if spki, err = s.publicKey(sp, public); err != nil {
		return 0, nil, err
	}
	length, err = s.readPrivate(sp, private, spki, out)
	return length, spki, refused(name, sp.generate, err)
}

// privateAttributes are those of PKCS #8's inner structure, in its order.
func (s spec) privateAttributes() []uint {
	switch s.keyType {
	case pkcs11.CKK_RSA:
		return []uint{
			pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT, pkcs11.CKA_PRIVATE_EXPONENT,
			pkcs11.CKA_PRIME_1, pkcs11.CKA_PRIME_2,
			pkcs11.CKA_EXPONENT_1, pkcs11.CKA_EXPONENT_2, pkcs11.CKA_COEFFICIENT,
		}
	case pkcs11.CKK_EC, ckkECEdwards:
		return []uint{pkcs11.CKA_VALUE}
	}
	return nil
}

// readPrivate reads the attributes straight into buffers that it wipes, twice:
// nothing else would show that the device had cut one short.
func (s *session) readPrivate(sp spec, private pkcs11.ObjectHandle, spki, out []byte) (int, error) {
	buf := make([]byte, 2*maxPKCS8)
	defer clear(buf)
	values, err := s.readAttributes(sp, private, buf[:maxPKCS8])
	if err != nil {
		return 0, err
	}
	again, err := s.readAttributes(sp, private, buf[maxPKCS8:])
	if err != nil {
		return 0, err
	}
	if !slices.EqualFunc(values, again, bytes.Equal) {
		return 0, errChanging
	}
	return sp.encodePrivate(values, spki, out)
}

func (s *session) readAttributes(sp spec, private pkcs11.ObjectHandle, rest []byte) ([][]byte, error) {
	var values [][]byte
	for _, kind := range sp.privateAttributes() {
		n, code := s.t.module.native.attribute(s.handle, private, kind, rest)
		if code == pkcs11.CKR_OK && (n == 0 || sp.keyType == pkcs11.CKK_EC && n > sp.curve.size) {
			code = ckrWrongLength
		}
		if code != pkcs11.CKR_OK {
			return nil, &DeviceError{Doing: "reading a data key pair", Code: code}
		}
		values = append(values, rest[:n])
		rest = rest[n:]
	}
	return values, nil
}

// encodePrivate writes a PrivateKeyInfo (RFC 5208 §5) to out, without any
// other copy of its secret parts.
func (s spec) encodePrivate(values [][]byte, spki, out []byte) (int, error) {
	var info, algorithm, public cryptobyte.String = spki, nil, nil
	if !info.ReadASN1(&info, asn1.SEQUENCE) || !info.ReadASN1Element(&algorithm, asn1.SEQUENCE) ||
		!info.ReadASN1Element(&public, asn1.BIT_STRING) {
		return 0, fmt.Errorf("encoding a private key: its public key has another form")
	}
	b := cryptobyte.NewFixedBuilder(out[:0])
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(algorithm)
		b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
			switch s.keyType {
			case pkcs11.CKK_RSA:
				addRSAPrivateKey(b, values)
			case pkcs11.CKK_EC:
				s.curve.addPrivateKey(b, values[0], public)
			default:
				b.AddASN1OctetString(values[0]) // RFC 8410 §7
			}
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return 0, fmt.Errorf("encoding a private key: %w", err)
	}
	return len(der), nil
}

// addRSAPrivateKey adds an RSAPrivateKey (RFC 8017 §A.1.2).
func addRSAPrivateKey(b *cryptobyte.Builder, values [][]byte) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		for _, value := range values {
			b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) {
				for len(value) > 1 && value[0] == 0 {
					value = value[1:]
				}
				if len(value) == 0 || value[0]&0x80 != 0 {
					b.AddUint8(0)
				}
				b.AddBytes(value)
			})
		}
	})
}

// addPrivateKey adds an ECPrivateKey (RFC 5915 §3), whose curve PKCS #8 names.
func (c *curve) addPrivateKey(b *cryptobyte.Builder, value []byte, public cryptobyte.String) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
			for range c.size - len(value) { // some devices drop leading zeros
				b.AddUint8(0)
			}
			b.AddBytes(value)
		})
		b.AddASN1(asn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddBytes(public)
		})
	})
}
