//go:build ignore

// A PKCS#11 library that hands every call to the one named MODULE, and knows
// its AES key wrap (0x2109) by the number KW, and its AES key wrap with padding
// (0x210A, RFC 5649) by KWP: 0 for a mechanism that it has not. PADDED is a
// number whose output is 8 bytes longer than RFC 5649's, and which opens
// nothing else: what padding before RFC 3394 comes to for lengths in eights.
// Where SECRETIVE, AES keys in the clear are refused; where STRICT, keys that
// are to encrypt and to wrap.
#include "shim.h"

enum { CKR_MECHANISM_INVALID = 0x70, CKR_TEMPLATE_INCONSISTENT = 0xD1, CKR_WRAPPED_KEY_INVALID = 0x110 };
enum { CKA_CLASS = 0, CKA_KEY_TYPE = 0x100, CKA_ENCRYPT = 0x104, CKA_WRAP = 0x106, CKO_SECRET_KEY = 4, CKK_AES = 0x1F };
#define CKA_ALLOWED_MECHANISMS 0x40000600UL
#define REAL_KW 0x2109UL
#define REAL_KWP 0x210AUL
#define NONE 0xFFFFFFFFUL

typedef ulong_t (*info_call)(ulong_t, ulong_t, void *);
typedef ulong_t (*create_call)(ulong_t, ck_attribute *, ulong_t, ulong_t *);
typedef ulong_t (*read_call)(ulong_t, ulong_t, ck_attribute *, ulong_t);
typedef ulong_t (*generate_call)(ulong_t, ck_mechanism *, ck_attribute *, ulong_t, ulong_t *);
typedef ulong_t (*wrap_call)(ulong_t, ck_mechanism *, ulong_t, ulong_t, byte_t *, ulong_t *);
typedef ulong_t (*unwrap_call)(ulong_t, ck_mechanism *, ulong_t, byte_t *, ulong_t, ck_attribute *, ulong_t, ulong_t *);

// inside is the real library's number for one of ours.
static ulong_t inside(ulong_t m) {
	if (KW && m == KW)
		return REAL_KW;
	if ((KWP && m == KWP) || (PADDED && m == PADDED))
		return REAL_KWP;
	return m == REAL_KW || m == REAL_KWP ? NONE : m;
}

static ulong_t outside(ulong_t m) {
	if (m == REAL_KW)
		return KW ? KW : NONE;
	if (m == REAL_KWP)
		return KWP ? KWP : PADDED ? PADDED : NONE;
	return m;
}

static ulong_t get_mechanism_info(ulong_t slot, ulong_t m, void *info) {
	if (inside(m) == NONE)
		return CKR_MECHANISM_INVALID;
	return ((info_call)real.fn[GetMechanismInfo])(slot, inside(m), info);
}

// Templates are copied: lists of allowed mechanisms have our numbers.
typedef struct { ck_attribute list[64]; ulong_t allowed[64]; } ck_template;

static int renumbered(ck_template *t, ck_attribute *given, ulong_t count) {
	if (count > 64)
		return 0;
	for (ulong_t i = 0; i < count; i++) {
		t->list[i] = given[i];
		if (given[i].type != CKA_ALLOWED_MECHANISMS || given[i].length > sizeof(t->allowed))
			continue;
		memcpy(t->allowed, given[i].value, given[i].length);
		for (ulong_t j = 0; j < given[i].length / sizeof(ulong_t); j++)
			t->allowed[j] = inside(t->allowed[j]);
		t->list[i].value = t->allowed;
	}
	return 1;
}

static ulong_t generate_key(ulong_t session, ck_mechanism *m, ck_attribute *template, ulong_t count, ulong_t *key) {
	ck_template t;
	int uses = 0;
	for (ulong_t i = 0; i < count; i++)
		uses += (template[i].type == CKA_ENCRYPT || template[i].type == CKA_WRAP) && *(byte_t *)template[i].value;
	if (STRICT && uses > 1)
		return CKR_TEMPLATE_INCONSISTENT;
	if (!renumbered(&t, template, count))
		return CKR_FUNCTION_FAILED;
	return ((generate_call)real.fn[GenerateKey])(session, m, t.list, count, key);
}

static ulong_t create_object(ulong_t session, ck_attribute *template, ulong_t count, ulong_t *object) {
	ulong_t class = NONE, type = NONE;
	for (ulong_t i = 0; i < count; i++) {
		if (template[i].type == CKA_CLASS)
			class = *(ulong_t *)template[i].value;
		if (template[i].type == CKA_KEY_TYPE)
			type = *(ulong_t *)template[i].value;
	}
	if (SECRETIVE && class == CKO_SECRET_KEY && type == CKK_AES)
		return CKR_TEMPLATE_INCONSISTENT;
	return ((create_call)real.fn[CreateObject])(session, template, count, object);
}

static ulong_t get_attribute_value(ulong_t session, ulong_t object, ck_attribute *template, ulong_t count) {
	ulong_t code = ((read_call)real.fn[GetAttributeValue])(session, object, template, count);
	for (ulong_t i = 0; code == CKR_OK && i < count; i++) {
		ulong_t *list = template[i].value;
		if (template[i].type != CKA_ALLOWED_MECHANISMS || list == NULL)
			continue;
		for (ulong_t j = 0; j < template[i].length / sizeof(ulong_t); j++)
			list[j] = outside(list[j]);
	}
	return code;
}

static ulong_t wrap_key(ulong_t session, ck_mechanism *m, ulong_t wrapper, ulong_t key, byte_t *out, ulong_t *length) {
	ck_mechanism ours = {inside(m->type), m->parameter, m->length};
	if (ours.type == NONE)
		return CKR_MECHANISM_INVALID;
	ulong_t code = ((wrap_call)real.fn[WrapKey])(session, &ours, wrapper, key, out, length);
	if (code == CKR_OK && PADDED && m->type == PADDED) {
		if (out != NULL)
			memset(out + *length, 8, 8); // Trent leaves room
		*length += 8;
	}
	return code;
}

static ulong_t unwrap_key(ulong_t session, ck_mechanism *m, ulong_t wrapper, byte_t *in, ulong_t length,
	ck_attribute *template, ulong_t count, ulong_t *object) {
	static const byte_t padding[8] = {8, 8, 8, 8, 8, 8, 8, 8};
	ck_mechanism ours = {inside(m->type), m->parameter, m->length};
	ck_template t;
	if (ours.type == NONE)
		return CKR_MECHANISM_INVALID;
	if (!renumbered(&t, template, count))
		return CKR_FUNCTION_FAILED;
	if (PADDED && m->type == PADDED) {
		if (length < 8 || memcmp(in + length - 8, padding, 8) != 0)
			return CKR_WRAPPED_KEY_INVALID;
		length -= 8;
	}
	return ((unwrap_call)real.fn[UnwrapKey])(session, &ours, wrapper, in, length, t.list, count, object);
}

ulong_t C_GetFunctionList(ck_functions **list) {
	ulong_t code = stand_before(MODULE, list);
	shown.fn[GetMechanismInfo] = (void *)get_mechanism_info;
	shown.fn[CreateObject] = (void *)create_object;
	shown.fn[GetAttributeValue] = (void *)get_attribute_value;
	shown.fn[GenerateKey] = (void *)generate_key;
	shown.fn[WrapKey] = (void *)wrap_key;
	shown.fn[UnwrapKey] = (void *)unwrap_key;
	return code;
}
