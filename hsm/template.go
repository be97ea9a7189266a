package hsm

import (
	"encoding/binary"
	"slices"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// Templates name every usage flag: devices differ in what they default to, and
// an unwrapped key is usable for everything and readable unless told otherwise
// (PKCS#11 v2.40 §4.9, §5.13).

func attr(kind uint, value any) *pkcs11.Attribute { return pkcs11.NewAttribute(kind, value) }

// usage returns all usage flags of a secret key, those in allowed true and the rest false.
func usage(allowed ...uint) []*pkcs11.Attribute {
	var flags []*pkcs11.Attribute
	for _, flag := range []uint{
		pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY,
		pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE,
	} {
		flags = append(flags, attr(flag, slices.Contains(allowed, flag)))
	}
	return flags
}

// mechanisms is the value of CKA_ALLOWED_MECHANISMS.
func mechanisms(list ...uint) []byte { return ulongs(list...) }

// ulongs is an array of CK_ULONG, or a structure of nothing else.
func ulongs(list ...uint) []byte {
	var b []byte
	for _, m := range list {
		if unsafe.Sizeof(uintptr(0)) == 8 {
			b = binary.NativeEndian.AppendUint64(b, uint64(m))
		} else {
			b = binary.NativeEndian.AppendUint32(b, uint32(m))
		}
	}
	return b
}

// backingKeyTemplate makes a backing key that can be wrapped and nothing else.
// It is EXTRACTABLE only for that, and destroyed at once. See protected.
func backingKeyTemplate(keyType uint, size int) []*pkcs11.Attribute {
	return sessionKeyTemplate(keyType, size, true)
}

func sessionKeyTemplate(keyType uint, size int, extractable bool, uses ...uint) []*pkcs11.Attribute {
	return append(usage(uses...),
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_KEY_TYPE, keyType),
		attr(pkcs11.CKA_VALUE_LEN, size),
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, extractable),
		attr(pkcs11.CKA_MODIFIABLE, false),
	)
}

// useTemplate is how a secret key comes back from its EKT: for the given uses
// only, never to leave again. It repeats all that unwrapTemplate pins, because
// devices refuse templates that leave a pinned attribute out.
func useTemplate(keyType uint, uses ...uint) []*pkcs11.Attribute {
	return append(usage(uses...),
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_KEY_TYPE, keyType),
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_MODIFIABLE, false),
	)
}

// privateUseTemplate is useTemplate for a private key. SoftHSM unwraps none
// that is unmodifiable.
func privateUseTemplate(keyType uint, uses ...uint) []*pkcs11.Attribute {
	return append(privateUsage(uses...), privateKeyTemplate(keyType, false)...)
}

// privateUsage is usage for a private key.
func privateUsage(allowed ...uint) []*pkcs11.Attribute {
	var flags []*pkcs11.Attribute
	for _, flag := range []uint{
		pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_SIGN_RECOVER, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE,
	} {
		flags = append(flags, attr(flag, slices.Contains(allowed, flag)))
	}
	for _, flag := range allowed { // of later versions of PKCS#11
		if flag == ckaDecapsulate {
			flags = append(flags, attr(flag, true))
		}
	}
	return flags
}

func privateKeyTemplate(keyType uint, extractable bool) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
		attr(pkcs11.CKA_KEY_TYPE, keyType),
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, extractable),
	}
}

// unwrapTemplate is what a domain key of a class enforces on everything that it
// unwraps, whoever asks: under the locked profile that it never leaves again,
// under the trusted one that nothing but a trusted key takes it along.
// MODIFIABLE=false keeps the pinned
// flags from being changed afterwards, by C_SetAttributeValue or C_CopyObject.
// Private keys may DERIVE, for key agreement, are of several key types, and
// cannot be unwrapped unmodifiable on SoftHSM; SENSITIVE and EXTRACTABLE=false
// hold for them even so.
func unwrapTemplate(c keyClass, p Profile) []*pkcs11.Attribute {
	lock := attr(pkcs11.CKA_EXTRACTABLE, false)
	if p == Trusted {
		lock = attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true)
	}
	pinned := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		lock,
	}
	if c == classPrivate {
		return append(pinned, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
	}
	keyType := uint(pkcs11.CKK_AES)
	if c == classGeneric {
		keyType = pkcs11.CKK_GENERIC_SECRET
	}
	return append(pinned,
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_KEY_TYPE, keyType),
		attr(pkcs11.CKA_WRAP, false),
		attr(pkcs11.CKA_UNWRAP, false),
		attr(pkcs11.CKA_DERIVE, false),
		attr(pkcs11.CKA_MODIFIABLE, false),
	)
}

// tokenKeyTemplate is common to all of Trent's own token objects.
func tokenKeyTemplate(label string, id []byte, uses ...uint) []*pkcs11.Attribute {
	return append(usage(uses...),
		attr(pkcs11.CKA_LABEL, label),
		attr(pkcs11.CKA_ID, id),
		attr(pkcs11.CKA_TOKEN, true),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_MODIFIABLE, false),
	)
}

// protected adds what the generation's profile demands of every key that it
// wraps or unwraps. Under the locked profile that is nothing: a key that is
// WRAP_WITH_TRUSTED could not be wrapped by its domain key. It comes first: SoftHSM
// sets attributes in their order, and none after MODIFIABLE=false.
func (g *generationKeys) protected(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	if g.Profile != Trusted {
		return template
	}
	return append([]*pkcs11.Attribute{attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true)}, template...)
}
