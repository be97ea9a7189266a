package softhsmtest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

type pair struct{ R, S *big.Int }

// encodings are altered encodings of a signature, and numbers that no
// signature has, on a curve of order n over the field of p.
func encodings(t *testing.T, good []byte, n, p *big.Int) map[string][]byte {
	t.Helper()
	var v pair
	must(asn1.Unmarshal(good, &v))(t)
	marshal := func(r, s *big.Int) []byte { return must(asn1.Marshal(pair{r, s}))(t) }
	integer := func(n *big.Int) []byte { return must(asn1.Marshal(n))(t) }
	der := func(tag byte, contents ...[]byte) []byte {
		return must(asn1.Marshal(asn1.RawValue{Class: int(tag >> 6), Tag: int(tag & 0x1F), IsCompound: tag&0x20 != 0, Bytes: bytes.Join(contents, nil)}))(t)
	}
	r, s := integer(v.R), integer(v.S)
	padded := func(n *big.Int) []byte { return der(2, append([]byte{0, 0}, n.Bytes()...)) }
	body := append(bytes.Clone(r), s...)
	sum := func(a, b *big.Int) *big.Int { return new(big.Int).Add(a, b) }
	zero, one := new(big.Int), big.NewInt(1)
	size := (n.BitLen() + 7) / 8
	raw := append(v.R.FillBytes(make([]byte, size)), v.S.FillBytes(make([]byte, size))...)
	length := func(head string) []byte { return append(must(hex.DecodeString(head))(t), body...) }
	all := map[string][]byte{
		"r‖s": raw, "a set": der(0x31, body), "empty sequence": {0x30, 0}, "null": {5, 0}, "a zero byte": {0},
		"indefinite length": append(length("3080"), 0, 0), "length of 2^31": length("30847fffffff"), "length of 2^64": length("3089010000000000000000"),
		"reserved length": length("30ff"), "no contents": {0x30, 0x44}, "bytes after": append(bytes.Clone(good), 0), "bytes inside": der(0x30, body, []byte{0}),
		"null inside": der(0x30, body, []byte{5, 0}), "a third number": der(0x30, body, r), "no s": der(0x30, r), "cut": good[:len(good)-1],
		"r as octets": der(0x30, der(4, v.R.Bytes()), s), "s as octets": der(0x30, r, der(4, v.S.Bytes())), "nested": der(0x30, good),
		"r padded": der(0x30, padded(v.R), s), "s padded": der(0x30, r, padded(v.S)), "empty r": der(0x30, []byte{2, 0}, s), "empty s": der(0x30, r, []byte{2, 0}),
		"numbers constructed": der(0x30, der(0x22, v.R.Bytes()), s),
		"r = 0":               marshal(zero, v.S), "s = 0": marshal(v.R, zero), "both 0": marshal(zero, zero), "both 1": marshal(one, one),
		"0, 1": marshal(zero, one), "1, 0": marshal(one, zero), "r = n": marshal(n, v.S), "s = n": marshal(v.R, n), "both n": marshal(n, n),
		"n-1": marshal(sum(n, big.NewInt(-1)), sum(n, big.NewInt(-1))), "n+1": marshal(sum(n, one), sum(n, one)), "p": marshal(p, v.S), "p+1": marshal(sum(p, one), v.S),
		"r+n": marshal(sum(v.R, n), v.S), "s+n": marshal(v.R, sum(v.S, n)), "r-n": marshal(new(big.Int).Sub(v.R, n), v.S), "s-n": marshal(v.R, new(big.Int).Sub(v.S, n)),
		"-r": marshal(new(big.Int).Neg(v.R), v.S), "-s": marshal(v.R, new(big.Int).Neg(v.S)), "n-r": marshal(new(big.Int).Sub(n, v.R), v.S),
		"swapped": marshal(v.S, v.R), "r+2^1024": marshal(sum(v.R, new(big.Int).Lsh(one, 1024)), v.S), "s+2^1024": marshal(v.R, sum(v.S, new(big.Int).Lsh(one, 1024))),
		"r+2^8size": marshal(sum(v.R, new(big.Int).Lsh(one, uint(8*size))), v.S), "r of 4000 bytes": marshal(new(big.Int).Lsh(one, 32000), v.S),
	}
	if v.R.BitLen()%8 == 0 { // the sign bit says negative
		all["r without its zero"] = der(0x30, der(2, v.R.Bytes()), s)
	}
	if len(body) < 128 {
		all["a long length"] = append([]byte{0x30, 0x81, byte(len(body))}, body...)
	} else {
		all["a longer length"] = append([]byte{0x30, 0x82, 0, byte(len(body))}, body...)
	}
	return all
}

// Order and field of secp256k1 (SEC 2 §2.4.1), which Go does not have.
const (
	orderK1 = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
	fieldK1 = "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f"
)

func TestVectorsECDSA(t *testing.T) {
	c := shared(t).client(t)
	message := []byte(marker)
	number := func(text string) *big.Int { n, _ := new(big.Int).SetString(text, 16); return n }
	check := func(t *testing.T, key *types.KeyMetadata, algorithm types.SigningAlgorithmSpec, n, p *big.Int) {
		good := signed(t, c, key, algorithm, "", message)
		must(verifyAs(c, key, algorithm, message, good))(t)
		var v pair
		must(asn1.Unmarshal(good, &v))(t)
		v.S.Sub(n, v.S) // (r, n-s) is as good as (r, s)
		must(verifyAs(c, key, algorithm, message, must(asn1.Marshal(v))(t)))(t)
		wantNoSignature(t, c, key, algorithm, message, encodings(t, good, n, p))
	}
	for spec, curve := range map[types.KeySpec]elliptic.Curve{
		types.KeySpecEccNistP256: elliptic.P256(), types.KeySpecEccNistP384: elliptic.P384(), types.KeySpecEccNistP521: elliptic.P521(),
	} {
		t.Run(string(spec), func(t *testing.T) {
			private := must(ecdsa.GenerateKey(curve, rand.Reader))(t)
			key := imported(t, c, spec, signs, must(x509.MarshalPKCS8PrivateKey(private))(t))
			algorithm := key.SigningAlgorithms[0]
			size := hashOf(string(algorithm)).Size()
			// Digests at the ends, and above the order.
			for _, digest := range [][]byte{make([]byte, size), bytes.Repeat([]byte{0xFF}, size), append(make([]byte, size-1), 1)} {
				if !ecdsa.VerifyASN1(&private.PublicKey, digest, signed(t, c, key, algorithm, types.MessageTypeDigest, digest)) {
					t.Errorf("Go does not verify the signature of digest %x", digest)
				}
			}
			check(t, key, algorithm, curve.Params().N, curve.Params().P)
		})
	}
	t.Run("secp256k1", func(t *testing.T) {
		check(t, kindOf(t, c, types.KeySpecEccSecgP256k1, signs), "ECDSA_SHA_256", number(orderK1), number(fieldK1))
	})
}

// spki is a SubjectPublicKeyInfo of any parameters and point.
func spki(t *testing.T, algorithm asn1.ObjectIdentifier, parameters []byte, point asn1.BitString) []byte {
	t.Helper()
	return must(asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{pkix.AlgorithmIdentifier{Algorithm: algorithm, Parameters: asn1.RawValue{FullBytes: parameters}}, point}))(t)
}

var idECPublicKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}

// explicit are the curve's own parameters (SEC 1 §C.2) in full, of which a
// careless reader takes the generator or the order from its peer.
func explicit(t *testing.T, c *elliptic.CurveParams, generator []byte, order *big.Int) []byte {
	t.Helper()
	size := (c.BitSize + 7) / 8
	a := new(big.Int).Sub(c.P, big.NewInt(3))
	type field struct {
		Type asn1.ObjectIdentifier
		P    *big.Int
	}
	return must(asn1.Marshal(struct {
		Version  int
		Field    field
		Curve    struct{ A, B []byte }
		Base     []byte
		Order    *big.Int
		Cofactor int
	}{1, field{asn1.ObjectIdentifier{1, 2, 840, 10045, 1, 1}, c.P},
		struct{ A, B []byte }{a.FillBytes(make([]byte, size)), c.B.FillBytes(make([]byte, size))}, generator, order, 1}))(t)
}

// peers are what an attacker sends in place of a point of the curve.
func peers(t *testing.T, c *elliptic.CurveParams, name asn1.ObjectIdentifier, point []byte) map[string][]byte {
	t.Helper()
	size := (c.BitSize + 7) / 8
	oid := func(n ...int) []byte { return must(asn1.Marshal(asn1.ObjectIdentifier(n)))(t) }
	named := must(asn1.Marshal(name))(t)
	bits := func(b []byte) asn1.BitString { return asn1.BitString{Bytes: b, BitLength: 8 * len(b)} }
	at := func(point []byte) []byte { return spki(t, idECPublicKey, named, bits(point)) }
	xy := func(x, y *big.Int) []byte {
		return append(append([]byte{4}, x.FillBytes(make([]byte, size))...), y.FillBytes(make([]byte, size))...)
	}
	x, y := new(big.Int).SetBytes(point[1:1+size]), new(big.Int).SetBytes(point[1+size:])
	with := func(first byte, rest []byte) []byte { return append([]byte{first}, rest...) }
	one, zero := big.NewInt(1), new(big.Int)
	good := at(point)
	inside := must(asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
		More      asn1.RawValue
	}{pkix.AlgorithmIdentifier{Algorithm: idECPublicKey, Parameters: asn1.RawValue{FullBytes: named}}, bits(point), asn1.NullRawValue}))(t)
	all := map[string][]byte{
		"infinity": at([]byte{0}), "zeros": at(xy(zero, zero)), "nothing": at(nil), "4 alone": at([]byte{4}), "x = 0, y = 1": at(xy(zero, one)),
		"x = p": at(xy(c.P, y)), "y = p": at(xy(x, c.P)), "x = p-1": at(xy(new(big.Int).Sub(c.P, one), y)), "y+1": at(xy(x, new(big.Int).Add(y, one))),
		"swapped": at(xy(y, x)), "compressed": at(with(2+byte(y.Bit(0)), point[1:1+size])), "hybrid": at(with(6+byte(y.Bit(0)), point[1:])), "first byte 5": at(with(5, point[1:])),
		"cut": at(point[:len(point)-1]), "longer": at(with(4, append(bytes.Clone(point[1:]), 0))), "padded": at(with(4, append([]byte{0}, point[1:]...))),
		"a bit unused":  spki(t, idECPublicKey, named, asn1.BitString{Bytes: append(bytes.Clone(point[:len(point)-1]), point[len(point)-1]&0xFE), BitLength: 8*len(point) - 1}),
		"no parameters": spki(t, idECPublicKey, nil, bits(point)), "null parameters": spki(t, idECPublicKey, []byte{5, 0}, bits(point)),
		"id-ecDH": spki(t, asn1.ObjectIdentifier{1, 3, 132, 1, 12}, named, bits(point)), "secp256k1's name": spki(t, idECPublicKey, oid(1, 3, 132, 0, 10), bits(point)),
		"brainpoolP256r1's name": spki(t, idECPublicKey, oid(1, 3, 36, 3, 3, 2, 8, 1, 1, 7), bits(point)), "P-224's name": spki(t, idECPublicKey, oid(1, 3, 132, 0, 33), bits(point)),
		"explicit parameters":        spki(t, idECPublicKey, explicit(t, c, xy(c.Gx, c.Gy), c.N), bits(point)),
		"explicit, peer's generator": spki(t, idECPublicKey, explicit(t, c, point, c.N), bits(point)),
		"explicit, order 1":          spki(t, idECPublicKey, explicit(t, c, xy(c.Gx, c.Gy), one), bits(point)),
		"explicit, order n+2":        spki(t, idECPublicKey, explicit(t, c, xy(c.Gx, c.Gy), new(big.Int).Add(c.N, big.NewInt(2))), bits(point)),
		"bytes after":                append(bytes.Clone(good), 0), "null inside": inside, "cut DER": good[:len(good)-1], "indefinite length": append(append([]byte{0x30, 0x80}, good[2:]...), 0, 0), "a set": with(0x31, good[1:]),
	}
	// A point of the twist has an x that no point of the curve has.
	for twist := new(big.Int).Set(x); ; twist.Add(twist, one) {
		square := new(big.Int).Exp(twist, big.NewInt(3), c.P)
		square.Sub(square, new(big.Int).Mul(big.NewInt(3), twist)).Add(square, c.B).Mod(square, c.P)
		if big.Jacobi(square, c.P) < 0 {
			all["x of the twist"] = at(xy(twist, y))
			return all
		}
	}
}

func TestVectorsECDH(t *testing.T) {
	c := shared(t).client(t)
	derive := func(key *types.KeyMetadata, peer []byte) ([]byte, error) {
		out, err := c.DeriveSharedSecret(context.Background(), &kms.DeriveSharedSecretInput{KeyId: key.KeyId, KeyAgreementAlgorithm: "ECDH", PublicKey: peer})
		if err != nil {
			return nil, err
		}
		return out.SharedSecret, nil
	}
	names := map[types.KeySpec]asn1.ObjectIdentifier{
		types.KeySpecEccNistP256: {1, 2, 840, 10045, 3, 1, 7}, types.KeySpecEccNistP384: {1, 3, 132, 0, 34}, types.KeySpecEccNistP521: {1, 3, 132, 0, 35},
	}
	params := map[types.KeySpec]*elliptic.CurveParams{
		types.KeySpecEccNistP256: elliptic.P256().Params(), types.KeySpecEccNistP384: elliptic.P384().Params(), types.KeySpecEccNistP521: elliptic.P521().Params(),
	}
	for spec, curve := range agreeing {
		t.Run(string(spec), func(t *testing.T) {
			private := must(curve.GenerateKey(rand.Reader))(t)
			key := imported(t, c, spec, agrees, must(x509.MarshalPKCS8PrivateKey(private))(t))
			size := (params[spec].BitSize + 7) / 8
			one, last := append(make([]byte, size-1), 1), new(big.Int).Sub(params[spec].N, big.NewInt(1)).FillBytes(make([]byte, size))
			good := map[string]*ecdh.PrivateKey{
				"generator": must(curve.NewPrivateKey(one))(t), "its inverse": must(curve.NewPrivateKey(last))(t), "own": private, "zeros before the secret": nil,
			}
			for good["zeros before the secret"] == nil { // one in 256
				peer := must(curve.GenerateKey(rand.Reader))(t)
				if secret := must(peer.ECDH(private.PublicKey()))(t); secret[0] == 0 && secret[1] < 2 {
					good["zeros before the secret"] = peer
				}
			}
			for name, peer := range good {
				want := must(private.ECDH(peer.PublicKey()))(t)
				if got, err := derive(key, must(x509.MarshalPKIXPublicKey(peer.PublicKey()))(t)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %x, want %x (%v)", name, got, want, err)
				}
			}
			point := must(curve.GenerateKey(rand.Reader))(t).PublicKey().Bytes()
			must(derive(key, spki(t, idECPublicKey, must(asn1.Marshal(names[spec]))(t), asn1.BitString{Bytes: point, BitLength: 8 * len(point)})))(t)
			bad := peers(t, params[spec], names[spec], point)
			for name, peer := range bad {
				t.Run(name, func(t *testing.T) {
					_, err := derive(key, peer)
					wantCode(t, err, "ValidationException", "")
				})
			}
			t.Logf("%d vectors", len(good)+len(bad))
		})
	}
}
