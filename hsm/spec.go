package hsm

import (
	"encoding/asn1"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Use is what a backing key is for, AWS's KeyUsage.
type Use int

const (
	UseEncrypt     Use = iota + 1 // ENCRYPT_DECRYPT
	UseSign                       // SIGN_VERIFY
	UseMAC                        // GENERATE_VERIFY_MAC
	UseAgree                      // KEY_AGREEMENT
	UseEncapsulate                // ENCAPSULATE_DECAPSULATE
)

// useFlags are the CKA_ usage flags of the copies that serve a use.
var useFlags = map[Use][]uint{
	UseEncrypt:     {pkcs11.CKA_DECRYPT},
	UseSign:        {pkcs11.CKA_SIGN},
	UseMAC:         {pkcs11.CKA_SIGN},
	UseAgree:       {pkcs11.CKA_DERIVE},
	UseEncapsulate: {ckaDecapsulate},
}

// Values of PKCS#11 3.0 and 3.2 that miekg does not name.
const (
	ckkECEdwards = 0x40
	ckkMLKEM     = 0x49
	ckkMLDSA     = 0x4A

	ckmMLKEMKeyPairGen     = 0x0F
	ckmMLKEM               = 0x17
	ckmMLDSAKeyPairGen     = 0x1C
	ckmMLDSA               = 0x1D
	ckmECEdwardsKeyPairGen = 0x1055
	ckmEdDSA               = 0x1057

	ckaParameterSet = 0x61D
	ckaDecapsulate  = 0x634

	ckfDecapsulate = 0x20000000
)

// spec is one of AWS's key specs. What a device can do is found out from this
// table: a device with a further mechanism needs no further code path.
type spec struct {
	class    keyClass
	keyType  uint // CKK_
	generate uint // CKM_
	// size: bytes of a secret, bits of an RSA modulus.
	size int
	// curve of a key on an elliptic curve.
	curve *curve
	// oid is the algorithm of the SubjectPublicKeyInfo of a key whose public
	// half is plain bytes, and parameters its CKA_PARAMETER_SET, if it has one.
	oid        asn1.ObjectIdentifier
	parameters uint
	// uses maps AWS's key usages to the mechanisms that they need.
	uses map[Use][]uint
	// like names the spec that is tried in this one's place, being faster made.
	like string
}

var specs = map[string]spec{
	"SYMMETRIC_DEFAULT": {class: classAES, keyType: pkcs11.CKK_AES, generate: pkcs11.CKM_AES_KEY_GEN, size: aesKeySize,
		uses: map[Use][]uint{UseEncrypt: {pkcs11.CKM_AES_GCM}}},

	"HMAC_224": hmacSpec(28, pkcs11.CKM_SHA224_HMAC),
	"HMAC_256": hmacSpec(32, pkcs11.CKM_SHA256_HMAC),
	"HMAC_384": hmacSpec(48, pkcs11.CKM_SHA384_HMAC),
	"HMAC_512": hmacSpec(64, pkcs11.CKM_SHA512_HMAC),

	"RSA_2048": rsaSpec(2048),
	"RSA_3072": rsaSpec(3072),
	"RSA_4096": rsaSpec(4096),

	"ECC_NIST_P256":   ecSpec(p256, pkcs11.CKM_ECDH1_DERIVE),
	"ECC_NIST_P384":   ecSpec(p384, pkcs11.CKM_ECDH1_DERIVE),
	"ECC_NIST_P521":   ecSpec(p521, pkcs11.CKM_ECDH1_DERIVE),
	"ECC_SECG_P256K1": ecSpec(p256k1, 0),

	"ECC_NIST_EDWARDS25519": {class: classPrivate, keyType: ckkECEdwards, generate: ckmECEdwardsKeyPairGen,
		curve: edwards25519, oid: edwards25519.oid, uses: map[Use][]uint{UseSign: {ckmEdDSA}}},

	"ML_DSA_44": mlSpec(ckkMLDSA, ckmMLDSAKeyPairGen, ckmMLDSA, UseSign, 1, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 17}),
	"ML_DSA_65": mlSpec(ckkMLDSA, ckmMLDSAKeyPairGen, ckmMLDSA, UseSign, 2, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 18}),
	"ML_DSA_87": mlSpec(ckkMLDSA, ckmMLDSAKeyPairGen, ckmMLDSA, UseSign, 3, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 19}),

	"ML_KEM_512":  mlSpec(ckkMLKEM, ckmMLKEMKeyPairGen, ckmMLKEM, UseEncapsulate, 1, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 4, 1}),
	"ML_KEM_768":  mlSpec(ckkMLKEM, ckmMLKEMKeyPairGen, ckmMLKEM, UseEncapsulate, 2, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 4, 2}),
	"ML_KEM_1024": mlSpec(ckkMLKEM, ckmMLKEMKeyPairGen, ckmMLKEM, UseEncapsulate, 3, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 4, 3}),
}

func hmacSpec(size int, mechanism uint) spec {
	return spec{class: classGeneric, keyType: pkcs11.CKK_GENERIC_SECRET, generate: pkcs11.CKM_GENERIC_SECRET_KEY_GEN,
		size: size, uses: map[Use][]uint{UseMAC: {mechanism}}}
}

func rsaSpec(bits int) spec {
	s := spec{class: classPrivate, keyType: pkcs11.CKK_RSA, generate: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, size: bits,
		uses: map[Use][]uint{
			UseEncrypt: {pkcs11.CKM_RSA_PKCS_OAEP},
			UseSign:    {pkcs11.CKM_RSA_PKCS, pkcs11.CKM_RSA_PKCS_PSS},
		}}
	if bits > 2048 {
		s.like = "RSA_2048"
	}
	return s
}

func ecSpec(c *curve, agree uint) spec {
	s := spec{class: classPrivate, keyType: pkcs11.CKK_EC, generate: pkcs11.CKM_EC_KEY_PAIR_GEN, curve: c,
		uses: map[Use][]uint{UseSign: {pkcs11.CKM_ECDSA}}}
	if agree != 0 {
		s.uses[UseAgree] = []uint{agree}
	}
	return s
}

func mlSpec(keyType, generate, mechanism uint, use Use, parameters uint, oid asn1.ObjectIdentifier) spec {
	return spec{class: classPrivate, keyType: keyType, generate: generate, parameters: parameters, oid: oid,
		uses: map[Use][]uint{use: {mechanism}}}
}

// specFor finds the spec that AWS has for this use.
func specFor(name string, use Use) (spec, error) {
	s, ok := specs[name]
	if !ok || s.uses[use] == nil {
		return spec{}, fmt.Errorf("%w: there is no key spec %s for this use", ErrArgument, name)
	}
	return s, nil
}

// mechanismNames has those that a device may be told to lack.
var mechanismNames = map[uint]string{
	pkcs11.CKM_AES_KEY_GEN:            "CKM_AES_KEY_GEN",
	pkcs11.CKM_AES_GCM:                "CKM_AES_GCM",
	pkcs11.CKM_AES_KEY_WRAP:           "CKM_AES_KEY_WRAP",
	pkcs11.CKM_AES_KEY_WRAP_PAD:       "CKM_AES_KEY_WRAP_PAD",
	ckmAESKeyWrapKWP:                  "CKM_AES_KEY_WRAP_KWP",
	ckmLunaKW:                         "Luna's CKM_AES_KW",
	ckmLunaKWP:                        "Luna's CKM_AES_KWP",
	ckmCloudHSMNoPad:                  "CKM_CLOUDHSM_AES_KEY_WRAP_NO_PAD",
	ckmCloudHSMZeroPad:                "CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD",
	pkcs11.CKM_GENERIC_SECRET_KEY_GEN: "CKM_GENERIC_SECRET_KEY_GEN",
	pkcs11.CKM_SHA224_HMAC:            "CKM_SHA224_HMAC",
	pkcs11.CKM_SHA256_HMAC:            "CKM_SHA256_HMAC",
	pkcs11.CKM_SHA384_HMAC:            "CKM_SHA384_HMAC",
	pkcs11.CKM_SHA512_HMAC:            "CKM_SHA512_HMAC",
	pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN:  "CKM_RSA_PKCS_KEY_PAIR_GEN",
	pkcs11.CKM_RSA_PKCS:               "CKM_RSA_PKCS",
	pkcs11.CKM_RSA_PKCS_PSS:           "CKM_RSA_PKCS_PSS",
	pkcs11.CKM_RSA_PKCS_OAEP:          "CKM_RSA_PKCS_OAEP",
	pkcs11.CKM_RSA_X_509:              "CKM_RSA_X_509",
	pkcs11.CKM_EC_KEY_PAIR_GEN:        "CKM_EC_KEY_PAIR_GEN",
	pkcs11.CKM_ECDSA:                  "CKM_ECDSA",
	pkcs11.CKM_ECDH1_DERIVE:           "CKM_ECDH1_DERIVE",
	ckmECEdwardsKeyPairGen:            "CKM_EC_EDWARDS_KEY_PAIR_GEN",
	ckmEdDSA:                          "CKM_EDDSA",
	ckmMLDSAKeyPairGen:                "CKM_ML_DSA_KEY_PAIR_GEN",
	ckmMLDSA:                          "CKM_ML_DSA",
	ckmMLKEMKeyPairGen:                "CKM_ML_KEM_KEY_PAIR_GEN",
	ckmMLKEM:                          "CKM_ML_KEM",
}

func mechanismName(m uint) string {
	if name, ok := mechanismNames[m]; ok {
		return name
	}
	return fmt.Sprintf("mechanism 0x%X", m)
}
