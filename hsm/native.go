package hsm

/*
#cgo linux LDFLAGS: -ldl
#cgo noescape trent_gcm
#cgo nocallback trent_gcm
#cgo noescape trent_sign
#cgo nocallback trent_sign
#cgo noescape trent_verify
#cgo nocallback trent_verify
#cgo noescape trent_random
#cgo nocallback trent_random
#cgo noescape trent_wrap
#cgo nocallback trent_wrap
#cgo noescape trent_use
#cgo nocallback trent_use
#cgo noescape trent_attribute
#cgo nocallback trent_attribute
#cgo noescape trent_slots
#cgo nocallback trent_slots
#cgo noescape trent_find
#cgo nocallback trent_find
#cgo noescape trent_agree
#cgo nocallback trent_agree
#include <stdlib.h>
#include <string.h>
#include "native.h"
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// native holds a loaded library's function list. Each method below is one cgo
// call for what PKCS#11 does in two, on the caller's own buffers: the C side
// keeps no copy that would need wiping.
type native struct{ functions *C.ck_functions }

// loadNative loads the library at path. It is never unloaded.
func loadNative(path string) (native, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var why *C.char
	functions := C.trent_load(name, &why)
	if functions == nil {
		return native{}, fmt.Errorf("%w: %s; install the vendor's library and set its path", ErrModule, C.GoString(why))
	}
	return native{functions}, nil
}

func bytesOf(b []byte) (*C.ck_byte, C.ck_ulong) {
	return (*C.ck_byte)(unsafe.SliceData(b)), C.ck_ulong(len(b))
}

// written checks what the device says of its output: a length beyond the buffer
// would have the caller read, or index, what is not there.
func written(r C.ck_result, out []byte) (int, uint) {
	if r.code == pkcs11.CKR_OK && r.length > C.ck_ulong(len(out)) {
		return 0, ckrWrongLength
	}
	return int(min(r.length, C.ck_ulong(len(out)))), uint(r.code)
}

// gcm seals in into out (at least len(in)+16 bytes) or opens it. It returns
// the number of bytes written and the CKR_ code. A device with IVs of its own
// writes over iv, or, if it is empty, adds its IV to out.
func (n native) gcm(open bool, session pkcs11.SessionHandle, key pkcs11.ObjectHandle, iv, aad, in, out []byte) (int, uint) {
	ivPtr, ivLen := bytesOf(iv)
	aadPtr, aadLen := bytesOf(aad)
	inPtr, inLen := bytesOf(in)
	outPtr, outLen := bytesOf(out)
	decrypt := C.int(0)
	if open {
		decrypt = 1
	}
	r := C.trent_gcm(n.functions, decrypt, C.ck_ulong(session), C.ck_ulong(key),
		ivPtr, ivLen, aadPtr, aadLen, inPtr, inLen, outPtr, outLen)
	return written(r, out)
}

func (n native) sign(mechanism uint, session pkcs11.SessionHandle, key pkcs11.ObjectHandle, in, out []byte) (int, uint) {
	inPtr, inLen := bytesOf(in)
	outPtr, outLen := bytesOf(out)
	r := C.trent_sign(n.functions, C.ck_ulong(mechanism), C.ck_ulong(session), C.ck_ulong(key),
		inPtr, inLen, outPtr, outLen)
	return written(r, out)
}

func (n native) verify(mechanism uint, session pkcs11.SessionHandle, key pkcs11.ObjectHandle, in, mac []byte) uint {
	inPtr, inLen := bytesOf(in)
	macPtr, macLen := bytesOf(mac)
	return uint(C.trent_verify(n.functions, C.ck_ulong(mechanism), C.ck_ulong(session), C.ck_ulong(key),
		inPtr, inLen, macPtr, macLen))
}

func (n native) random(session pkcs11.SessionHandle, out []byte) uint {
	outPtr, outLen := bytesOf(out)
	return uint(C.trent_random(n.functions, C.ck_ulong(session), outPtr, outLen))
}

// wrap wraps key into out. parameters are as use's.
func (n native) wrap(mechanism uint, parameters []byte, session pkcs11.SessionHandle, wrapper, key pkcs11.ObjectHandle, out []byte) (int, uint) {
	parPtr, parLen := bytesOf(parameters)
	outPtr, outLen := bytesOf(out)
	r := C.trent_wrap(n.functions, C.ck_ulong(mechanism), parPtr, parLen,
		C.ck_ulong(session), C.ck_ulong(wrapper), C.ck_ulong(key), outPtr, outLen)
	return written(r, out)
}

// use signs in, or decrypts it, by any mechanism. parameters are as the
// mechanism has them in memory and hold no pointers but null.
func (n native) use(decrypt bool, mechanism uint, parameters []byte, session pkcs11.SessionHandle, key pkcs11.ObjectHandle, in, out []byte) (int, uint) {
	parPtr, parLen := bytesOf(parameters)
	inPtr, inLen := bytesOf(in)
	outPtr, outLen := bytesOf(out)
	what := C.int(0)
	if decrypt {
		what = 1
	}
	r := C.trent_use(n.functions, what, C.ck_ulong(mechanism), parPtr, parLen,
		C.ck_ulong(session), C.ck_ulong(key), inPtr, inLen, outPtr, outLen)
	return written(r, out)
}

// attribute reads an attribute into out, leaving no copy elsewhere, and
// returns its length.
func (n native) attribute(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, kind uint, out []byte) (int, uint) {
	outPtr, outLen := bytesOf(out)
	r := C.trent_attribute(n.functions, C.ck_ulong(session), C.ck_ulong(object), C.ck_ulong(kind), outPtr, outLen)
	return written(r, out)
}

// attributeLength asks how long an attribute is. It is none if the device says
// that it has no value to show.
func (n native) attributeLength(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, kind uint) (length int, code uint) {
	r := C.trent_attribute(n.functions, C.ck_ulong(session), C.ck_ulong(object), C.ck_ulong(kind), nil, 0)
	switch {
	case r.code != pkcs11.CKR_OK || r.length == C.ck_ulong(pkcs11.CK_UNAVAILABLE_INFORMATION):
		return 0, uint(r.code)
	case r.length > maxAttribute:
		return 0, ckrWrongLength
	}
	return int(r.length), pkcs11.CKR_OK
}

// maxAttribute is more than any attribute has bytes that Trent reads.
const maxAttribute = 1 << 20

// mostSlots is more than any library shows.
const mostSlots = 1 << 12

// slots lists those that have a token.
func (n native) slots() ([]uint, uint) {
	out := make([]uint, mostSlots)
	r := C.trent_slots(n.functions, (*C.ck_ulong)(unsafe.Pointer(unsafe.SliceData(out))), mostSlots)
	count, code := numbered(r, len(out))
	return out[:count], code
}

// find continues a search. It returns how many handles it wrote to out, 0 at
// the end.
func (n native) find(session pkcs11.SessionHandle, out []pkcs11.ObjectHandle) (int, uint) {
	r := C.trent_find(n.functions, C.ck_ulong(session), (*C.ck_ulong)(unsafe.Pointer(unsafe.SliceData(out))), C.ck_ulong(len(out)))
	return numbered(r, len(out))
}

// numbered is written for lists with room for so many.
func numbered(r C.ck_result, room int) (int, uint) {
	switch {
	case r.code != pkcs11.CKR_OK:
		return 0, uint(r.code)
	case r.length > C.ck_ulong(room):
		return 0, ckrWrongLength
	}
	return int(r.length), pkcs11.CKR_OK
}

// agree computes ECDH with the point peer on curve, the value of
// CKA_EC_PARAMS. out has the length of a coordinate.
func (n native) agree(session pkcs11.SessionHandle, key pkcs11.ObjectHandle, curve, peer, out []byte) (int, uint) {
	curvePtr, curveLen := bytesOf(curve)
	peerPtr, peerLen := bytesOf(peer)
	outPtr, outLen := bytesOf(out)
	r := C.trent_agree(n.functions, C.ck_ulong(session), C.ck_ulong(key), curvePtr, curveLen, peerPtr, peerLen, outPtr, outLen)
	return written(r, out)
}

// importSecret makes a generic secret session object that can be wrapped and
// nothing else.
func (n native) importSecret(session pkcs11.SessionHandle, secret []byte) (pkcs11.ObjectHandle, uint) {
	ptr, length := bytesOf(secret)
	r := C.trent_import_secret(n.functions, C.ck_ulong(session), ptr, length)
	return pkcs11.ObjectHandle(r.length), uint(r.code)
}

// nestedTemplate builds a CK_ATTRIBUTE array in C memory and returns it as the
// value of an attribute such as CKA_UNWRAP_TEMPLATE, which miekg copies but
// cannot build. The value holds C pointers: it is good until free is called.
func nestedTemplate(attributes []*pkcs11.Attribute) (value []byte, free func()) {
	size := C.size_t(unsafe.Sizeof(C.ck_attribute{}))
	array := C.calloc(C.size_t(len(attributes)), size)
	list := unsafe.Slice((*C.ck_attribute)(array), len(attributes))
	for i, a := range attributes {
		list[i]._type = C.ck_ulong(a.Type)
		list[i].value = C.CBytes(a.Value)
		list[i].length = C.ck_ulong(len(a.Value))
	}
	free = func() {
		for i := range list {
			C.free(list[i].value)
		}
		C.free(array)
	}
	return C.GoBytes(array, C.int(size)*C.int(len(attributes))), free
}
