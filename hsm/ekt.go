package hsm

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/pkcs11"
)

// EKT is an exported key token: a backing key, wrapped by a domain key, as
// self-describing bytes. Integers are big-endian.
//
//	EKT        = version generation class mechanism keytype length wrapped
//	version    = %x01
//	generation = 4 OCTET   ; of the domain key, from 1
//	class      = %x01      ; AES        (CKK_AES)
//	           / %x02      ; generic    (CKK_GENERIC_SECRET)
//	           / %x03      ; private    (any key type)
//	mechanism  = 4 OCTET   ; CKM_ value of the wrapping mechanism on the
//	                       ; device that wrapped, one of wrapMechanisms for
//	                       ; the class: RFC 3394 or RFC 5649 for AES, for
//	                       ; others RFC 5649
//	keytype    = 4 OCTET   ; CKK_ value
//	length     = 2 OCTET   ; true length of the key in bytes: some devices
//	                       ; pad generic secrets with zeros when they wrap;
//	                       ; zero for private keys
//	wrapped    = 1*OCTET   ; C_WrapKey's output
type EKT []byte

const (
	ektVersion = 1
	ektHeader  = 1 + 4 + 1 + 4 + 4 + 2
	aesKeySize = 32
	// ImportSecret's bounds in bytes. Shorter keys are refused by devices for
	// HMAC-SHA-256; longer ones are hashed by HMAC before use, so that the
	// zeros with which SoftHSM pads on wrapping would change the result.
	minSecret, maxSecret = 32, 64
	// Bounds of all generic secrets: HMAC_224's key, and SHA-512's block.
	minGeneric, maxGeneric = 28, 128
)

// keyClass sorts backing keys by the domain key that wraps them. The values
// are part of the EKT format.
type keyClass uint8

const (
	classAES     keyClass = 1
	classGeneric keyClass = 2
	classPrivate keyClass = 3
)

var keyClasses = []keyClass{classAES, classGeneric, classPrivate}

// String is the class's name in labels of token objects.
func (c keyClass) String() string {
	switch c {
	case classAES:
		return "aes"
	case classGeneric:
		return "generic"
	case classPrivate:
		return "private"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// keyToken is a parsed EKT.
type keyToken struct {
	generation uint32
	class      keyClass
	mechanism  uint // CKM_, of the device that wrapped it
	keyType    uint
	length     int
	wrapped    []byte
}

func (k keyToken) encode() EKT {
	b := make([]byte, 0, ektHeader+len(k.wrapped))
	b = append(b, ektVersion)
	b = binary.BigEndian.AppendUint32(b, k.generation)
	b = append(b, byte(k.class))
	b = binary.BigEndian.AppendUint32(b, uint32(k.mechanism))
	b = binary.BigEndian.AppendUint32(b, uint32(k.keyType))
	b = binary.BigEndian.AppendUint16(b, uint16(k.length))
	return append(b, k.wrapped...)
}

// parse refuses whatever encode would not have written.
func (e EKT) parse() (keyToken, error) {
	if len(e) <= ektHeader || e[0] != ektVersion {
		return keyToken{}, fmt.Errorf("%w: not an EKT of version %d", ErrInvalidEKT, ektVersion)
	}
	k := keyToken{
		generation: binary.BigEndian.Uint32(e[1:]),
		class:      keyClass(e[5]),
		mechanism:  uint(binary.BigEndian.Uint32(e[6:])),
		keyType:    uint(binary.BigEndian.Uint32(e[10:])),
		length:     int(binary.BigEndian.Uint16(e[14:])),
		wrapped:    e[ektHeader:],
	}
	ok := k.generation > 0 && k.class.formOf(k.mechanism) != 0
	switch k.class {
	case classAES:
		ok = ok && k.keyType == pkcs11.CKK_AES && k.length == aesKeySize && len(k.wrapped) == aesKeySize+8
	case classGeneric:
		ok = ok && k.keyType == pkcs11.CKK_GENERIC_SECRET && k.length >= minGeneric && k.length <= maxGeneric &&
			len(k.wrapped) == (k.length+7)/8*8+8
	case classPrivate:
		ok = ok && k.length == 0 && len(k.wrapped)%8 == 0
	default:
		ok = false
	}
	if !ok {
		return keyToken{}, fmt.Errorf("%w: its description contradicts itself", ErrInvalidEKT)
	}
	return k, nil
}

// class reads the class without parsing; 0 if e is too short.
func (e EKT) class() keyClass {
	if len(e) <= ektHeader {
		return 0
	}
	return keyClass(e[5])
}

// Classes are the names of the kinds of keys that have a domain key each.
func Classes() (names []string) {
	for _, c := range keyClasses {
		names = append(names, c.String())
	}
	return names
}

// Class is the one of Classes that the EKT's key is of.
func (e EKT) Class() string { return e.class().String() }
