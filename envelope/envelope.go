// Package envelope is the form of the ciphertexts that Trent gives out: which
// key and which backing key made them, the IV, and the sealed bytes. It knows
// neither keys nor storage. Every byte of a blob is authenticated: the header
// is part of the AAD, the rest is GCM's own input. The IV is not in the header,
// because some HSMs choose it only when the AAD is already theirs.
package envelope

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// The grammar of a blob. All lengths are in bytes; hex digits of a key id are
// lower case, so that one key has one spelling and one blob one parse.
//
//	blob       = header iv-length iv sealed    ; at most MaxSize in all
//	header     = version kind key-id backing-key
//	version    = %x01                          ; up to the first release the form
//	                                           ; may change under this number
//	kind       = kind-uuid / kind-mrk
//	kind-uuid  = %x00                          ; key id is a UUID with dashes
//	kind-mrk   = %x01                          ; key id is "mrk-" and 32 hex digits
//	key-id     = 16OCTET                       ; the 32 hex digits
//	backing-key = 16OCTET                      ; id of the HBK
//	iv-length  = %d12 / %d16
//	iv         = 12OCTET / 16OCTET             ; as iv-length says
//	sealed     = 1*OCTET tag                   ; ciphertext, as long as the plaintext
//	tag        = 16OCTET                       ; AES-GCM
const (
	version  = 0x01
	kindUUID = 0x00
	kindMRK  = 0x01

	keyIDAt      = 2
	backingKeyAt = keyIDAt + 16
	ivLengthAt   = backingKeyAt + 16
	ivAt         = ivLengthAt + 1

	shortIV, longIV = 12, 16
	tagSize         = 16
)

// MaxSize is the greatest length of a blob in bytes (CiphertextType in the
// KMS model).
const MaxSize = 6144

// ErrInvalid says that bytes are no blob of ours, or a header cannot be made
// into one. It carries no detail on purpose: the caller learns only
// InvalidCiphertextException.
var ErrInvalid = errors.New("not a ciphertext of this service")

// Header is what a blob says about the keys that made it.
type Header struct {
	KeyID      string   // lower-case UUID with dashes, or "mrk-" and 32 lower-case hex digits
	BackingKey [16]byte // id of the HBK that sealed it
}

// AppendHeader appends the encoded header to dst. It returns ErrInvalid, and
// dst unchanged, when the key id has neither form.
func AppendHeader(dst []byte, h Header) ([]byte, error) {
	kind, id, ok := packKeyID(h.KeyID)
	if !ok {
		return dst, fmt.Errorf("encoding key id %q: %w", h.KeyID, ErrInvalid)
	}
	dst = append(slices.Grow(dst, ivLengthAt), version, kind)
	dst = append(dst, id[:]...)
	return append(dst, h.BackingKey[:]...), nil
}

// Finish appends to an encoded header what makes it a blob: the IV (12 or 16
// bytes, as used by the HSM) and the sealed bytes. It returns ErrInvalid for
// what Parse would not take.
func Finish(header, iv, sealed []byte) ([]byte, error) {
	if !validIVLength(len(iv)) {
		return nil, fmt.Errorf("encoding an IV of %d bytes: %w", len(iv), ErrInvalid)
	}
	size := len(header) + 1 + len(iv) + len(sealed)
	if len(sealed) <= tagSize || size > MaxSize {
		return nil, fmt.Errorf("encoding %d sealed bytes: %w", len(sealed), ErrInvalid)
	}
	blob := append(make([]byte, 0, size), header...)
	blob = append(blob, byte(len(iv)))
	blob = append(blob, iv...)
	return append(blob, sealed...), nil
}

// Blob is a blob taken apart. Its slices are parts of the blob, not copies.
type Blob struct {
	Header
	Encoded []byte // the header's bytes, for AAD
	IV      []byte // 12 or 16 bytes
	Sealed  []byte // ciphertext and tag
}

// Parse splits a blob. Anything that does not follow the grammar is
// ErrInvalid.
func Parse(blob []byte) (Blob, error) {
	if len(blob) < ivAt || len(blob) > MaxSize || blob[0] != version {
		return Blob{}, ErrInvalid
	}
	ivLength := int(blob[ivLengthAt])
	end := ivAt + ivLength
	if !validIVLength(ivLength) || len(blob) <= end+tagSize {
		return Blob{}, ErrInvalid
	}
	keyID, ok := unpackKeyID(blob[1], [16]byte(blob[keyIDAt:backingKeyAt]))
	if !ok {
		return Blob{}, ErrInvalid
	}
	return Blob{
		Header:  Header{KeyID: keyID, BackingKey: [16]byte(blob[backingKeyAt:ivLengthAt])},
		Encoded: blob[:ivLengthAt:ivLengthAt],
		IV:      blob[ivAt:end:end],
		Sealed:  blob[end:],
	}, nil
}

func validIVLength(n int) bool { return n == shortIV || n == longIV }

// AAD returns what GCM authenticates beside the plaintext:
//
//	aad   = header count *pair
//	count = uint32                   ; number of pairs
//	pair  = uint32 key uint32 value  ; each length, then that many bytes
//
// Integers are big-endian; pairs are sorted by the bytes of their keys. The
// header has a fixed length and every string carries its own, so two different
// (header, context) pairs never share an AAD. A nil context equals an empty
// one, as AWS has it. The IV needs no place here: what GCM's tag covers is
// encrypted under it, and with another IV, or one of another length, no tag
// holds.
func AAD(header []byte, context map[string]string) []byte {
	size := len(header) + 4
	keys := make([]string, 0, len(context))
	for k, v := range context {
		keys = append(keys, k)
		size += 8 + len(k) + len(v)
	}
	slices.Sort(keys)
	aad := append(make([]byte, 0, size), header...)
	aad = binary.BigEndian.AppendUint32(aad, uint32(len(keys)))
	for _, k := range keys {
		aad = appendString(aad, k)
		aad = appendString(aad, context[k])
	}
	return aad
}

func appendString(dst []byte, s string) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s)))
	return append(dst, s...)
}

// packKeyID turns the two spellings of a key id into a kind and 16 bytes. It
// accepts exactly the spellings that unpackKeyID produces.
func packKeyID(s string) (kind byte, id [16]byte, ok bool) {
	var digits [32]byte
	switch len(s) {
	case 36:
		if s[:4] == "mrk-" {
			kind = kindMRK
			copy(digits[:], s[4:])
			break
		}
		if s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
			return 0, id, false
		}
		kind = kindUUID
		n := copy(digits[:], s[:8])
		n += copy(digits[n:], s[9:13])
		n += copy(digits[n:], s[14:18])
		n += copy(digits[n:], s[19:23])
		copy(digits[n:], s[24:])
	default:
		return 0, id, false
	}
	for _, c := range digits {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return 0, id, false
		}
	}
	_, err := hex.Decode(id[:], digits[:])
	return kind, id, err == nil
}

// ValidKeyID reports whether s is what AWS takes for a key id: a lower-case
// UUID with dashes, or "mrk-" and 32 lower-case hex digits for a multi-Region
// key.
func ValidKeyID(s string) bool {
	_, _, ok := packKeyID(s)
	return ok
}

func unpackKeyID(kind byte, id [16]byte) (string, bool) {
	var text [36]byte
	switch kind {
	case kindUUID:
		hex.Encode(text[:8], id[:4])
		text[8] = '-'
		hex.Encode(text[9:13], id[4:6])
		text[13] = '-'
		hex.Encode(text[14:18], id[6:8])
		text[18] = '-'
		hex.Encode(text[19:23], id[8:10])
		text[23] = '-'
		hex.Encode(text[24:], id[10:])
	case kindMRK:
		copy(text[:], "mrk-")
		hex.Encode(text[4:], id[:])
	default:
		return "", false
	}
	return string(text[:]), true
}
