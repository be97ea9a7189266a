package softhsmtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Encodings of the kinds that Project Wycheproof made known are signed or
// encrypted here with a key that is in the HSM too. One in a thousand of them
// would pass where padding is looked at loosely.

// An rsaVictim is an imported key pair that the test knows.
type rsaVictim struct {
	*rsa.PrivateKey
	key *types.KeyMetadata
}

func newVictim(t *testing.T, c *kms.Client, usage types.KeyUsageType) rsaVictim {
	t.Helper()
	private := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	return rsaVictim{private, imported(t, c, types.KeySpecRsa2048, usage, must(x509.MarshalPKCS8PrivateKey(private))(t))}
}

// sign raises an encoding to the private exponent.
func (v rsaVictim) sign(em []byte) []byte {
	return new(big.Int).Exp(new(big.Int).SetBytes(em), v.D, v.N).FillBytes(make([]byte, v.Size()))
}

// encrypt raises an encoding to the public exponent.
func (v rsaVictim) encrypt(em []byte) []byte {
	return new(big.Int).Exp(new(big.Int).SetBytes(em), big.NewInt(int64(v.E)), v.N).FillBytes(make([]byte, v.Size()))
}

// mgf1 is dst ⊕ MGF1(seed) (RFC 8017 §B.2.1).
func mgf1(h crypto.Hash, dst, seed []byte) {
	for i := 0; len(dst) > 0; i++ {
		block := digestOf(h, binary.BigEndian.AppendUint32(bytes.Clone(seed), uint32(i)))
		for j := range min(len(block), len(dst)) {
			dst[j] ^= block[j]
		}
		dst = dst[min(len(block), len(dst)):]
	}
}

// strange are values that are no signature and no ciphertext of the key's.
func (v rsaVictim) strange(good []byte) map[string][]byte {
	n := func(delta int64) []byte {
		return new(big.Int).Add(v.N, big.NewInt(delta)).FillBytes(make([]byte, v.Size()))
	}
	all := map[string][]byte{
		"zero": make([]byte, v.Size()), "one": append(make([]byte, v.Size()-1), 1),
		"n-1": n(-1), "n": n(0), "n+1": n(1), "all ones": bytes.Repeat([]byte{0xFF}, v.Size()),
		"a byte": {1}, "cut at the end": good[:v.Size()-1], "cut at the beginning": good[1:],
		"a byte more": append(bytes.Clone(good), 0), "a zero before": append([]byte{0}, good...), "twice": append(bytes.Clone(good), good...),
	}
	if sum := new(big.Int).Add(v.N, new(big.Int).SetBytes(good)); sum.BitLen() <= 8*v.Size() {
		all["plus n"] = sum.FillBytes(make([]byte, v.Size()))
	}
	return all
}

func TestVectorsPKCS1(t *testing.T) {
	c := shared(t).client(t)
	v := newVictim(t, c, signs)
	message := []byte(marker)
	digest := digestOf(crypto.SHA256, message)
	info := append(must(hex.DecodeString("3031300d060960864801650304020105000420"))(t), digest...)
	em := func(first, kind byte, padding, rest []byte) []byte {
		em := append([]byte{first, kind}, padding...)
		return append(append(em, 0), rest...)
	}
	padding := func(rest int) []byte { return bytes.Repeat([]byte{0xFF}, v.Size()-3-rest) }
	altered := func(b []byte, at int, value byte) []byte {
		b = bytes.Clone(b)
		b[at] = value
		return b
	}
	digestInfo := func(head string) []byte { return append(must(hex.DecodeString(head))(t), digest...) }
	rest := func(info []byte) []byte { return v.sign(em(0, 1, padding(len(info)), info)) }
	good := rest(info)
	must(verifyAs(c, v.key, "RSASSA_PKCS1_V1_5_SHA_256", message, good))(t)
	if out := signed(t, c, v.key, "RSASSA_PKCS1_V1_5_SHA_256", "", message); !bytes.Equal(out, good) {
		t.Error("Sign does not answer the one signature that there is")
	}
	bad := v.strange(good)
	for name, signature := range map[string][]byte{
		"no parameters":           rest(digestInfo("302f300b0609608648016503040201" + "0420")),
		"parameters of zero ints": rest(digestInfo("3031300d06096086480165030402010201" + "0420")),
		"SHA-384's name":          rest(digestInfo("3031300d060960864801650304020205000420")),
		"SHA-1's name":            rest(digestInfo("302d300906052b0e03021a05000420")),
		"a long length":           rest(digestInfo("308131300d060960864801650304020105000420")),
		"a long inner length":     rest(digestInfo("303230810d060960864801650304020105000420")),
		"a long digest length":    rest(digestInfo("3032300d06096086480165030402010500048120")),
		"indefinite length":       rest(append(digestInfo("3080300d060960864801650304020105000420"), 0, 0)),
		"a set":                   rest(digestInfo("3131300d060960864801650304020105000420")),
		"no DigestInfo":           rest(digest),
		"a cut digest":            rest(info[:len(info)-1]),
		"another digest":          rest(altered(info, len(info)-1, info[len(info)-1]^1)),
		"bytes after it":          rest(append(bytes.Clone(info), 0)),
		"garbage and 8 of FF":     v.sign(append(em(0, 1, bytes.Repeat([]byte{0xFF}, 8), info), make([]byte, v.Size()-11-len(info))...)),
		"no FF at all":            v.sign(append(em(0, 1, nil, info), make([]byte, v.Size()-3-len(info))...)),
		"a zero in the padding":   v.sign(altered(em(0, 1, padding(len(info)), info), 50, 0)),
		"FE in the padding":       v.sign(altered(em(0, 1, padding(len(info)), info), 50, 0xFE)),
		"no separator":            v.sign(altered(em(0, 1, padding(len(info)), info), v.Size()-len(info)-1, 0xFF)),
		"block type 0":            v.sign(em(0, 0, make([]byte, v.Size()-3-len(info)), info)),
		"block type 2":            v.sign(em(0, 2, padding(len(info)), info)),
		"first byte 1":            v.sign(em(1, 1, padding(len(info)), info)),
	} {
		bad[name] = signature
	}
	wantNoSignature(t, c, v.key, "RSASSA_PKCS1_V1_5_SHA_256", message, bad)
}

func verifyAs(c *kms.Client, key *types.KeyMetadata, algorithm types.SigningAlgorithmSpec, message, signature []byte) (*kms.VerifyOutput, error) {
	return c.Verify(context.Background(), &kms.VerifyInput{KeyId: key.KeyId, Message: message, Signature: signature, SigningAlgorithm: algorithm})
}

func wantNoSignature(t *testing.T, c *kms.Client, key *types.KeyMetadata, algorithm types.SigningAlgorithmSpec, message []byte, bad map[string][]byte) {
	t.Helper()
	for name, signature := range bad {
		t.Run(name, func(t *testing.T) {
			_, err := verifyAs(c, key, algorithm, message, signature)
			wantError[*types.KMSInvalidSignatureException](t, err, "")
		})
	}
	t.Logf("%s: %d vectors", algorithm, len(bad))
}

// pssEncoding is EMSA-PSS (RFC 8017 §9.1.1), to be bent.
type pssEncoding struct {
	hash, mask     crypto.Hash
	salt           int
	before, one    byte // of what precedes the salt: zeros, then 1
	top, last, mix byte // ored into the first byte, the trailer, xored into H
}

func (e pssEncoding) encode(size int, message []byte) []byte {
	salt := bytes.Repeat([]byte{0x5A}, e.salt)
	h := digestOf(e.hash, append(append(make([]byte, 8), digestOf(e.hash, message)...), salt...))
	db := make([]byte, size-len(h)-1)
	one := len(db) - e.salt - 1
	db[one-1] = e.before
	db[one] = e.one
	copy(db[one+1:], salt)
	mgf1(e.mask, db, h)
	db[0] = db[0]&0x7F | e.top
	h[0] ^= e.mix
	return append(append(db, h...), e.last)
}

func TestVectorsPSS(t *testing.T) {
	c := shared(t).client(t)
	v := newVictim(t, c, signs)
	message := []byte(marker)
	right := pssEncoding{hash: crypto.SHA256, mask: crypto.SHA256, salt: 32, one: 1, last: 0xBC}
	good := v.sign(right.encode(v.Size(), message))
	must(verifyAs(c, v.key, "RSASSA_PSS_SHA_256", message, good))(t)
	bad := v.strange(good)
	bend := func(name string, f func(*pssEncoding)) {
		e := right
		f(&e)
		em := e.encode(v.Size(), message)
		if new(big.Int).SetBytes(em).Cmp(v.N) < 0 {
			bad[name] = v.sign(em)
		}
	}
	for name, salt := range map[string]int{"no salt": 0, "20 bytes of salt": 20, "31 bytes of salt": 31, "33 bytes of salt": 33, "all salt": v.Size() - 32 - 3} {
		bend(name, func(e *pssEncoding) { e.salt = salt })
	}
	bend("SHA-1's mask", func(e *pssEncoding) { e.mask = crypto.SHA1 })
	bend("SHA-512's mask", func(e *pssEncoding) { e.mask = crypto.SHA512 })
	bend("SHA-512's hash", func(e *pssEncoding) { e.hash = crypto.SHA512 })
	bend("trailer CC", func(e *pssEncoding) { e.last = 0xCC })
	bend("trailer 0", func(e *pssEncoding) { e.last = 0 })
	bend("top bit", func(e *pssEncoding) { e.top = 0x80 })
	bend("separator 2", func(e *pssEncoding) { e.one = 2 })
	bend("separator 0", func(e *pssEncoding) { e.one = 0 })
	bend("no zero before it", func(e *pssEncoding) { e.before = 1 })
	bend("another H", func(e *pssEncoding) { e.mix = 1 })
	bad["not encoded"] = v.sign(digestOf(crypto.SHA256, message))
	wantNoSignature(t, c, v.key, "RSASSA_PSS_SHA_256", message, bad)
}

// oaepEncoding is EME-OAEP (RFC 8017 §7.1.1), to be bent.
type oaepEncoding struct {
	hash, mask            crypto.Hash
	label                 string
	seed, first, pad, one byte
}

func (e oaepEncoding) encode(size int, message []byte) []byte {
	seed := bytes.Repeat([]byte{e.seed}, e.hash.Size())
	db := make([]byte, size-1-len(seed))
	copy(db, digestOf(e.hash, []byte(e.label)))
	one := len(db) - len(message) - 1
	if one > e.hash.Size() {
		db[one-1] = e.pad
	}
	db[one] = e.one
	copy(db[one+1:], message)
	mgf1(e.mask, db, seed)
	mgf1(e.mask, seed, db)
	return append(append([]byte{e.first}, seed...), db...)
}

func TestVectorsOAEP(t *testing.T) {
	c := shared(t).client(t)
	v := newVictim(t, c, encrypts)
	for algorithm, hash := range map[types.EncryptionAlgorithmSpec]crypto.Hash{"RSAES_OAEP_SHA_1": crypto.SHA1, "RSAES_OAEP_SHA_256": crypto.SHA256} {
		decrypt := func(blob []byte) ([]byte, error) {
			out, err := c.Decrypt(context.Background(), &kms.DecryptInput{KeyId: v.key.KeyId, CiphertextBlob: blob, EncryptionAlgorithm: algorithm})
			if err != nil {
				return nil, err
			}
			return out.Plaintext, nil
		}
		right := oaepEncoding{hash: hash, mask: hash, one: 1}
		most := v.Size() - 2*hash.Size() - 2
		for _, size := range []int{0, 1, 2, 32, most - 1, most} {
			for _, seed := range []byte{0, 0x01, 0xFF} {
				for _, fill := range []byte{0, 1, 0xFF} { // zeros and ones look like padding
					e := right
					e.seed = seed
					message := bytes.Repeat([]byte{fill}, size)
					if got, err := decrypt(v.encrypt(e.encode(v.Size(), message))); err != nil || !bytes.Equal(got, message) {
						t.Errorf("%s, %d bytes of %#x, seed of %#x: %x, %v", algorithm, size, fill, seed, got, err)
					}
				}
			}
		}
		good := v.encrypt(right.encode(v.Size(), []byte(marker)))
		bad := v.strange(good)
		bend := func(name string, message []byte, f func(*oaepEncoding)) {
			e := right
			f(&e)
			bad[name] = v.encrypt(e.encode(v.Size(), message))
		}
		for name, f := range map[string]func(*oaepEncoding){
			"first byte 1":                      func(e *oaepEncoding) { e.first = 1 },
			"a label":                           func(e *oaepEncoding) { e.label = "label" },
			"another mask":                      func(e *oaepEncoding) { e.mask = crypto.SHA384 },
			"another hash":                      func(e *oaepEncoding) { e.hash, e.mask = crypto.SHA512, crypto.SHA512 },
			"separator 2":                       func(e *oaepEncoding) { e.one = 2 },
			"padding FF":                        func(e *oaepEncoding) { e.pad = 0xFF },
			"padding 80":                        func(e *oaepEncoding) { e.pad = 0x80 },
			"hash of SHA-1 with SHA-256's mask": func(e *oaepEncoding) { e.hash, e.mask = crypto.SHA1, crypto.SHA256 },
		} {
			bend(name, []byte(marker), f)
		}
		bend("no separator", make([]byte, 32), func(e *oaepEncoding) { e.one = 0 })
		bend("no separator at all", nil, func(e *oaepEncoding) { e.one = 0 })
		bad["PKCS #1 v1.5"] = must(rsa.EncryptPKCS1v15(rand.Reader, &v.PublicKey, []byte(marker)))(t) //nolint:staticcheck // what must be refused
		bad["no padding"] = v.encrypt([]byte(marker))
		for name, blob := range bad {
			t.Run(string(algorithm)+"/"+name, func(t *testing.T) {
				_, err := decrypt(blob)
				wantError[*types.InvalidCiphertextException](t, err, "")
			})
		}
		t.Logf("%s: %d vectors", algorithm, 54+len(bad))
	}
	if out := must(c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: v.key.KeyId, Plaintext: []byte(marker), EncryptionAlgorithm: "RSAES_OAEP_SHA_256"}))(t); aws.ToString(out.KeyId) != *v.key.Arn {
		t.Errorf("Encrypt answered %s", aws.ToString(out.KeyId))
	} else if got := must(rsa.DecryptOAEP(sha256.New(), nil, v.PrivateKey, out.CiphertextBlob, nil))(t); string(got) != marker {
		t.Error("Go opens something else")
	}
}
