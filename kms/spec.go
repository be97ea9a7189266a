package kms

import (
	"crypto"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/hsm"
)

// keyType is what an alias may not change: a key's type, in AWS's words.
type keyType string

const (
	symmetricKey  keyType = "symmetric"
	asymmetricKey keyType = "asymmetric"
	hmacKey       keyType = "HMAC"
)

// keySpec is what AWS lets keys of a spec do: the algorithms of each usage, in
// AWS's order. Whether this HSM can is hsm.Domain.Supports's to say.
type keySpec struct {
	keyType keyType
	usages  map[types.KeyUsageType][]string
}

// keySpecs is "Key spec reference" of the KMS developer guide, without SM2,
// which is of China's Regions.
var keySpecs = map[types.KeySpec]keySpec{
	types.KeySpecSymmetricDefault: {symmetricKey, map[types.KeyUsageType][]string{
		types.KeyUsageTypeEncryptDecrypt: {"SYMMETRIC_DEFAULT"}}},

	types.KeySpecHmac224: hmacSpec("HMAC_SHA_224"),
	types.KeySpecHmac256: hmacSpec("HMAC_SHA_256"),
	types.KeySpecHmac384: hmacSpec("HMAC_SHA_384"),
	types.KeySpecHmac512: hmacSpec("HMAC_SHA_512"),

	types.KeySpecRsa2048: rsaSpec,
	types.KeySpecRsa3072: rsaSpec,
	types.KeySpecRsa4096: rsaSpec,

	types.KeySpecEccNistP256:         nistSpec("ECDSA_SHA_256"),
	types.KeySpecEccNistP384:         nistSpec("ECDSA_SHA_384"),
	types.KeySpecEccNistP521:         nistSpec("ECDSA_SHA_512"),
	types.KeySpecEccSecgP256k1:       signingSpec("ECDSA_SHA_256"),
	types.KeySpecEccNistEdwards25519: signingSpec("ED25519_SHA_512", "ED25519_PH_SHA_512"),

	types.KeySpecMlDsa44: signingSpec("ML_DSA_SHAKE_256"),
	types.KeySpecMlDsa65: signingSpec("ML_DSA_SHAKE_256"),
	types.KeySpecMlDsa87: signingSpec("ML_DSA_SHAKE_256"),

	types.KeySpecMlKem512:  kemSpec,
	types.KeySpecMlKem768:  kemSpec,
	types.KeySpecMlKem1024: kemSpec,
}

var rsaSpec = keySpec{asymmetricKey, map[types.KeyUsageType][]string{
	types.KeyUsageTypeEncryptDecrypt: {"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"},
	types.KeyUsageTypeSignVerify: {
		"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
		"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
	}}}

var kemSpec = keySpec{asymmetricKey, map[types.KeyUsageType][]string{
	types.KeyUsageTypeEncapsulateDecapsulate: {"ML_KEM"}}}

func hmacSpec(algorithm string) keySpec {
	return keySpec{hmacKey, map[types.KeyUsageType][]string{types.KeyUsageTypeGenerateVerifyMac: {algorithm}}}
}

func signingSpec(algorithms ...string) keySpec {
	return keySpec{asymmetricKey, map[types.KeyUsageType][]string{types.KeyUsageTypeSignVerify: algorithms}}
}

func nistSpec(algorithm string) keySpec {
	s := signingSpec(algorithm)
	s.usages[types.KeyUsageTypeKeyAgreement] = []string{"ECDH"}
	return s
}

// hsmUses are the HSM's uses of AWS's key usages.
var hsmUses = map[string]hsm.Use{
	string(types.KeyUsageTypeEncryptDecrypt):         hsm.UseEncrypt,
	string(types.KeyUsageTypeSignVerify):             hsm.UseSign,
	string(types.KeyUsageTypeGenerateVerifyMac):      hsm.UseMAC,
	string(types.KeyUsageTypeKeyAgreement):           hsm.UseAgree,
	string(types.KeyUsageTypeEncapsulateDecapsulate): hsm.UseEncapsulate,
}

// signingAlgorithm is what a signing algorithm does with a message.
type signingAlgorithm struct {
	// hash is what a message is digested by before it is signed; 0 means that
	// the message itself is signed.
	hash crypto.Hash
	// takes are the sizes in bytes of the message types besides RAW.
	takes map[types.MessageType]int
	// notRaw: a message of type RAW is refused.
	notRaw bool
	// noMechanism is a message type of AWS's that PKCS#11 (3.2) has no
	// mechanism for.
	noMechanism types.MessageType
}

var signingAlgorithms = map[types.SigningAlgorithmSpec]signingAlgorithm{
	types.SigningAlgorithmSpecRsassaPssSha256:      digesting(crypto.SHA256),
	types.SigningAlgorithmSpecRsassaPssSha384:      digesting(crypto.SHA384),
	types.SigningAlgorithmSpecRsassaPssSha512:      digesting(crypto.SHA512),
	types.SigningAlgorithmSpecRsassaPkcs1V15Sha256: digesting(crypto.SHA256),
	types.SigningAlgorithmSpecRsassaPkcs1V15Sha384: digesting(crypto.SHA384),
	types.SigningAlgorithmSpecRsassaPkcs1V15Sha512: digesting(crypto.SHA512),
	types.SigningAlgorithmSpecEcdsaSha256:          digesting(crypto.SHA256),
	types.SigningAlgorithmSpecEcdsaSha384:          digesting(crypto.SHA384),
	types.SigningAlgorithmSpecEcdsaSha512:          digesting(crypto.SHA512),
	types.SigningAlgorithmSpecEd25519Sha512:        {},
	types.SigningAlgorithmSpecEd25519PhSha512:      {takes: map[types.MessageType]int{types.MessageTypeDigest: 64}, notRaw: true},
	types.SigningAlgorithmSpecMlDsaShake256:        {takes: map[types.MessageType]int{types.MessageTypeExternalMu: 64}, noMechanism: types.MessageTypeExternalMu},
}

func digesting(h crypto.Hash) signingAlgorithm {
	return signingAlgorithm{hash: h, takes: map[types.MessageType]int{types.MessageTypeDigest: h.Size()}}
}

// spec is what AWS lets the key do.
func (k *key) spec() keySpec { return keySpecs[types.KeySpec(k.Spec)] }

// symmetric reports whether the key encrypts by AES-GCM under our own
// envelope.
func (k *key) symmetric() bool { return k.Spec == string(types.KeySpecSymmetricDefault) }

// algorithms are those that the key can be used with.
func (k *key) algorithms() []string { return k.spec().usages[types.KeyUsageType(k.Usage)] }

// checkUsage refuses an operation on a key of another usage, and an algorithm
// that is not the key's.
func checkUsage(call *Call, k *key, usage types.KeyUsageType, algorithm string) error {
	if k.Usage != string(usage) {
		return invalidUsage("%s key usage is %s which is not valid for %s.", k.arn, k.Usage, call.Operation)
	}
	if !slices.Contains(k.algorithms(), algorithm) {
		return invalidUsage("Algorithm %s is incompatible with key spec %s.", algorithm, k.Spec)
	}
	return nil
}

func invalidUsage(format string, args ...any) error {
	return &types.InvalidKeyUsageException{Message: aws.String(fmt.Sprintf(format, args...))}
}

// named are algorithms as a list of one of the SDK's enums.
func named[A ~string](algorithms []string) []A {
	list := make([]A, len(algorithms))
	for i, a := range algorithms {
		list[i] = A(a)
	}
	return list
}

// algorithmLists are the members of KeyMetadata and of GetPublicKey's answer of
// which a key shows the one of its usage.
type algorithmLists struct {
	encryption    []types.EncryptionAlgorithmSpec
	signing       []types.SigningAlgorithmSpec
	mac           []types.MacAlgorithmSpec
	agreement     []types.KeyAgreementAlgorithmSpec
	encapsulation []types.EncapsulationAlgorithmSpec
}

func (k *key) algorithmLists() (lists algorithmLists) {
	all := k.algorithms()
	switch types.KeyUsageType(k.Usage) {
	case types.KeyUsageTypeEncryptDecrypt:
		lists.encryption = named[types.EncryptionAlgorithmSpec](all)
	case types.KeyUsageTypeSignVerify:
		lists.signing = named[types.SigningAlgorithmSpec](all)
	case types.KeyUsageTypeGenerateVerifyMac:
		lists.mac = named[types.MacAlgorithmSpec](all)
	case types.KeyUsageTypeKeyAgreement:
		lists.agreement = named[types.KeyAgreementAlgorithmSpec](all)
	case types.KeyUsageTypeEncapsulateDecapsulate:
		lists.encapsulation = named[types.EncapsulationAlgorithmSpec](all)
	}
	return lists
}
