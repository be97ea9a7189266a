package hsm

import (
	"crypto"
	"fmt"

	"github.com/miekg/pkcs11"
)

// algorithm is how one of AWS's algorithms is asked of a device.
type algorithm struct {
	keyType   uint
	mechanism uint
	hash      crypto.Hash // whose digest is signed; 0 = the message itself
	// parameters of the mechanism; nil = none.
	parameters []byte
	// prefix goes before the digest: PKCS #1 v1.5's DigestInfo.
	prefix []byte
	// size is the most bytes of the device's answer.
	size int
}

// maxModulus is the length in bytes of the longest RSA modulus that AWS has.
const maxModulus = 512

// hashes maps a hash to its mechanism and mask generation function.
var hashes = map[crypto.Hash]struct{ mechanism, mgf uint }{
	crypto.SHA1:   {pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1},
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

var signing = map[string]algorithm{
	"RSASSA_PSS_SHA_256":        pss(crypto.SHA256),
	"RSASSA_PSS_SHA_384":        pss(crypto.SHA384),
	"RSASSA_PSS_SHA_512":        pss(crypto.SHA512),
	"RSASSA_PKCS1_V1_5_SHA_256": pkcs1(crypto.SHA256, 1),
	"RSASSA_PKCS1_V1_5_SHA_384": pkcs1(crypto.SHA384, 2),
	"RSASSA_PKCS1_V1_5_SHA_512": pkcs1(crypto.SHA512, 3),
	"ECDSA_SHA_256":             {keyType: pkcs11.CKK_EC, mechanism: pkcs11.CKM_ECDSA, hash: crypto.SHA256, size: 64},
	"ECDSA_SHA_384":             {keyType: pkcs11.CKK_EC, mechanism: pkcs11.CKM_ECDSA, hash: crypto.SHA384, size: 96},
	"ECDSA_SHA_512":             {keyType: pkcs11.CKK_EC, mechanism: pkcs11.CKM_ECDSA, hash: crypto.SHA512, size: 132},
	"ED25519_SHA_512":           {keyType: ckkECEdwards, mechanism: ckmEdDSA, size: 64},
	"ED25519_PH_SHA_512":        {keyType: ckkECEdwards, mechanism: ckmEdDSA, size: 64, parameters: prehashed()},
	"ML_DSA_SHAKE_256":          {keyType: ckkMLDSA, mechanism: ckmMLDSA, size: 4627},
}

// pss has a salt of the digest's length, as AWS does.
func pss(h crypto.Hash) algorithm {
	return algorithm{keyType: pkcs11.CKK_RSA, mechanism: pkcs11.CKM_RSA_PKCS_PSS, hash: h, size: maxModulus,
		parameters: ulongs(hashes[h].mechanism, hashes[h].mgf, uint(h.Size()))}
}

// pkcs1's last is the end of the hash's object identifier,
// 2.16.840.1.101.3.4.2 (RFC 8017 §9.2, note 1).
func pkcs1(h crypto.Hash, last byte) algorithm {
	n := byte(h.Size())
	return algorithm{keyType: pkcs11.CKK_RSA, mechanism: pkcs11.CKM_RSA_PKCS, hash: h, size: maxModulus,
		prefix: []byte{0x30, 17 + n, 0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, last, 5, 0, 4, n}}
}

// prehashed is CK_EDDSA_PARAMS (PKCS#11 3.0 §2.3.9) with phFlag, which is one
// byte, and no context.
func prehashed() []byte {
	p := ulongs(0, 0, 0)
	p[0] = 1
	return p
}

var macs = map[string]algorithm{
	"HMAC_SHA_224": {keyType: pkcs11.CKK_GENERIC_SECRET, mechanism: pkcs11.CKM_SHA224_HMAC, size: 28},
	"HMAC_SHA_256": {keyType: pkcs11.CKK_GENERIC_SECRET, mechanism: pkcs11.CKM_SHA256_HMAC, size: 32},
	"HMAC_SHA_384": {keyType: pkcs11.CKK_GENERIC_SECRET, mechanism: pkcs11.CKM_SHA384_HMAC, size: 48},
	"HMAC_SHA_512": {keyType: pkcs11.CKK_GENERIC_SECRET, mechanism: pkcs11.CKM_SHA512_HMAC, size: 64},
}

// oaep maps AWS's names of RSA-OAEP without label to the hash, which is the
// mask generation function's too.
var oaep = map[string]crypto.Hash{
	"RSAES_OAEP_SHA_1":   crypto.SHA1,
	"RSAES_OAEP_SHA_256": crypto.SHA256,
}

// find looks an algorithm up and checks that the EKT's key can do it.
func find(table map[string]algorithm, name string, ekt EKT) (algorithm, error) {
	a, ok := table[name]
	if !ok {
		return a, fmt.Errorf("%w: there is no algorithm %q here", ErrArgument, name)
	}
	k, err := ekt.parse()
	if err != nil {
		return a, err
	}
	if a.keyType != k.keyType {
		return a, fmt.Errorf("%w: the key's type is not %s's", ErrArgument, name)
	}
	return a, nil
}
