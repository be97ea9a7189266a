#include "native.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

// Indices into ck_functions.fn of all functions that Trent calls, here or by miekg
// and crypto11.
#define CALLED(each) \
	each(C_Initialize, 0) each(C_Finalize, 1) each(C_GetInfo, 2) each(C_GetSlotList, 4) \
	each(C_GetTokenInfo, 6) each(C_GetMechanismInfo, 8) each(C_OpenSession, 12) \
	each(C_CloseSession, 13) each(C_CloseAllSessions, 14) each(C_GetSessionInfo, 15) \
	each(C_Login, 18) each(C_Logout, 19) each(C_CreateObject, 20) each(C_CopyObject, 21) \
	each(C_DestroyObject, 22) each(C_GetAttributeValue, 24) each(C_SetAttributeValue, 25) \
	each(C_FindObjectsInit, 26) each(C_FindObjects, 27) each(C_FindObjectsFinal, 28) \
	each(C_EncryptInit, 29) each(C_Encrypt, 30) each(C_DecryptInit, 33) each(C_Decrypt, 34) \
	each(C_SignInit, 42) each(C_Sign, 43) each(C_VerifyInit, 48) each(C_Verify, 49) \
	each(C_GenerateKey, 58) each(C_GenerateKeyPair, 59) each(C_WrapKey, 60) \
	each(C_UnwrapKey, 61) each(C_DeriveKey, 62) each(C_GenerateRandom, 64)
#define INDEX(name, at) name = at,
#define LACKING(name, at) if (list->fn[at] == NULL) return "its function list has no " #name;

enum { CALLED(INDEX) };

enum {
	CKM_AES_GCM = 0x1087,
	CKM_ECDH1_DERIVE = 0x1050,
	CKD_NULL = 1,
	CKR_DOMAIN_PARAMS_INVALID = 0x130,
	CKO_SECRET_KEY = 4,
	CKK_GENERIC_SECRET = 0x10,
	CKA_CLASS = 0x000,
	CKA_TOKEN = 0x001,
	CKA_PRIVATE = 0x002,
	CKA_VALUE = 0x011,
	CKA_KEY_TYPE = 0x100,
	CKA_SENSITIVE = 0x103,
	CKA_ENCRYPT = 0x104,
	CKA_DECRYPT = 0x105,
	CKA_WRAP = 0x106,
	CKA_UNWRAP = 0x107,
	CKA_SIGN = 0x108,
	CKA_VERIFY = 0x10A,
	CKA_DERIVE = 0x10C,
	CKA_VALUE_LEN = 0x161,
	CKA_EXTRACTABLE = 0x162,
	CKA_EC_PARAMS = 0x180,
};

typedef struct {
	ck_ulong mechanism;
	void *parameter;
	ck_ulong length;
} ck_mechanism;

typedef struct {
	ck_byte *iv;
	ck_ulong iv_length;
	ck_ulong iv_bits;
	ck_byte *aad;
	ck_ulong aad_length;
	ck_ulong tag_bits;
} ck_gcm_params;

typedef struct {
	ck_ulong kdf;
	ck_ulong shared_length;
	ck_byte *shared;
	ck_ulong peer_length;
	ck_byte *peer;
} ck_ecdh1_params;

typedef ck_ulong (*get_function_list)(ck_functions **);
typedef ck_ulong (*wrap_call)(ck_ulong, ck_mechanism *, ck_ulong, ck_ulong, ck_byte *, ck_ulong *);
typedef ck_ulong (*init_call)(ck_ulong, ck_mechanism *, ck_ulong);
typedef ck_ulong (*crypt_call)(ck_ulong, ck_byte *, ck_ulong, ck_byte *, ck_ulong *);
typedef ck_ulong (*verify_call)(ck_ulong, ck_byte *, ck_ulong, ck_byte *, ck_ulong);
typedef ck_ulong (*random_call)(ck_ulong, ck_byte *, ck_ulong);
typedef ck_ulong (*create_call)(ck_ulong, ck_attribute *, ck_ulong, ck_ulong *);
typedef ck_ulong (*destroy_call)(ck_ulong, ck_ulong);
typedef ck_ulong (*attribute_call)(ck_ulong, ck_ulong, ck_attribute *, ck_ulong);
typedef ck_ulong (*slots_call)(ck_byte, ck_ulong *, ck_ulong *);
typedef ck_ulong (*find_call)(ck_ulong, ck_ulong *, ck_ulong, ck_ulong *);
typedef ck_ulong (*derive_call)(ck_ulong, ck_mechanism *, ck_ulong, ck_attribute *, ck_ulong, ck_ulong *);

// lacking says what function a list has no address of, although PKCS#11 §5.4
// wants one for each, if only to answer CKR_FUNCTION_NOT_SUPPORTED.
static const char *lacking(const ck_functions *list)
{
	CALLED(LACKING)
	return NULL;
}

// trent_load never unloads: vendors' libraries keep threads and exit handlers
// that outlive C_Finalize.
ck_functions *trent_load(const char *path, const char **why)
{
	*why = NULL;
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (library == NULL) {
		*why = dlerror();
		return NULL;
	}
	get_function_list get = (get_function_list)dlsym(library, "C_GetFunctionList");
	ck_functions *list = NULL;
	if (get == NULL || get(&list) != 0 || list == NULL) {
		*why = "the library has no C_GetFunctionList: it is not a PKCS#11 module";
		return NULL;
	}
	*why = lacking(list);
	return *why == NULL ? list : NULL;
}

ck_result trent_gcm(ck_functions *f, int decrypt, ck_ulong session, ck_ulong key,
	ck_byte *iv, ck_ulong iv_length, ck_byte *aad, ck_ulong aad_length,
	ck_byte *in, ck_ulong in_length, ck_byte *out, ck_ulong out_capacity)
{
	ck_gcm_params params = {iv_length ? iv : NULL, iv_length, iv_length * 8, aad_length ? aad : NULL, aad_length, 128};
	ck_mechanism mechanism = {CKM_AES_GCM, &params, sizeof(params)};
	ck_result result = {0, out_capacity};
	result.code = ((init_call)f->fn[decrypt ? C_DecryptInit : C_EncryptInit])(session, &mechanism, key);
	if (result.code != 0) {
		return result;
	}
	result.code = ((crypt_call)f->fn[decrypt ? C_Decrypt : C_Encrypt])(
		session, in, in_length, out, &result.length);
	return result;
}

ck_result trent_sign(ck_functions *f, ck_ulong mechanism_type, ck_ulong session, ck_ulong key,
	ck_byte *in, ck_ulong in_length, ck_byte *out, ck_ulong out_capacity)
{
	ck_mechanism mechanism = {mechanism_type, NULL, 0};
	ck_result result = {0, out_capacity};
	result.code = ((init_call)f->fn[C_SignInit])(session, &mechanism, key);
	if (result.code != 0) {
		return result;
	}
	result.code = ((crypt_call)f->fn[C_Sign])(session, in, in_length, out, &result.length);
	return result;
}

ck_result trent_wrap(ck_functions *f, ck_ulong mechanism_type, ck_byte *parameter, ck_ulong parameter_length,
	ck_ulong session, ck_ulong wrapper, ck_ulong key, ck_byte *out, ck_ulong out_capacity)
{
	ck_mechanism mechanism = {mechanism_type, parameter_length ? parameter : NULL, parameter_length};
	ck_result result = {0, out_capacity};
	result.code = ((wrap_call)f->fn[C_WrapKey])(session, &mechanism, wrapper, key, out, &result.length);
	return result;
}

ck_ulong trent_verify(ck_functions *f, ck_ulong mechanism_type, ck_ulong session, ck_ulong key,
	ck_byte *in, ck_ulong in_length, ck_byte *mac, ck_ulong mac_length)
{
	ck_mechanism mechanism = {mechanism_type, NULL, 0};
	ck_ulong code = ((init_call)f->fn[C_VerifyInit])(session, &mechanism, key);
	if (code != 0) {
		return code;
	}
	return ((verify_call)f->fn[C_Verify])(session, in, in_length, mac, mac_length);
}

ck_ulong trent_random(ck_functions *f, ck_ulong session, ck_byte *out, ck_ulong length)
{
	return ((random_call)f->fn[C_GenerateRandom])(session, out, length);
}

// trent_import_secret makes a session object that can only be wrapped. The
// secret is read where the caller keeps it: no copy is made on this side.
ck_result trent_import_secret(ck_functions *f, ck_ulong session, ck_byte *secret, ck_ulong length)
{
	ck_ulong class = CKO_SECRET_KEY, type = CKK_GENERIC_SECRET;
	ck_byte yes = 1, no = 0;
	ck_attribute template[] = {
		{CKA_CLASS, &class, sizeof(class)},
		{CKA_KEY_TYPE, &type, sizeof(type)},
		{CKA_TOKEN, &no, 1},
		{CKA_PRIVATE, &yes, 1},
		{CKA_SENSITIVE, &yes, 1},
		{CKA_EXTRACTABLE, &yes, 1},
		{CKA_ENCRYPT, &no, 1},
		{CKA_DECRYPT, &no, 1},
		{CKA_SIGN, &no, 1},
		{CKA_VERIFY, &no, 1},
		{CKA_WRAP, &no, 1},
		{CKA_UNWRAP, &no, 1},
		{CKA_DERIVE, &no, 1},
		{CKA_VALUE, secret, length},
	};
	ck_result result = {0, 0};
	result.code = ((create_call)f->fn[C_CreateObject])(
		session, template, sizeof(template) / sizeof(template[0]), &result.length);
	return result;
}

ck_result trent_use(ck_functions *f, int decrypt, ck_ulong mechanism_type,
	ck_byte *parameter, ck_ulong parameter_length, ck_ulong session, ck_ulong key,
	ck_byte *in, ck_ulong in_length, ck_byte *out, ck_ulong out_capacity)
{
	ck_mechanism mechanism = {mechanism_type, parameter_length ? parameter : NULL, parameter_length};
	ck_result result = {0, out_capacity};
	result.code = ((init_call)f->fn[decrypt ? C_DecryptInit : C_SignInit])(session, &mechanism, key);
	if (result.code != 0) {
		return result;
	}
	result.code = ((crypt_call)f->fn[decrypt ? C_Decrypt : C_Sign])(
		session, in, in_length, out, &result.length);
	return result;
}

// trent_attribute reads an attribute into the caller's buffer only.
ck_result trent_attribute(ck_functions *f, ck_ulong session, ck_ulong object,
	ck_ulong type, ck_byte *out, ck_ulong out_capacity)
{
	ck_attribute wanted = {type, out, out_capacity};
	ck_result result = {0, 0};
	result.code = ((attribute_call)f->fn[C_GetAttributeValue])(session, object, &wanted, 1);
	if (result.code == 0) {
		result.length = wanted.length;
	}
	return result;
}

// trent_slots asks for the number first, and does not believe it: only a call
// without a list has the library look which slots there are (PKCS#11 §5.5).
ck_result trent_slots(ck_functions *f, ck_ulong *out, ck_ulong most)
{
	slots_call list = (slots_call)f->fn[C_GetSlotList];
	ck_result result = {0, 0};
	result.code = list(1, NULL, &result.length);
	if (result.code != 0) {
		return result;
	}
	result.length = most;
	result.code = list(1, out, &result.length);
	return result;
}

ck_result trent_find(ck_functions *f, ck_ulong session, ck_ulong *out, ck_ulong most)
{
	ck_result result = {0, 0};
	result.code = ((find_call)f->fn[C_FindObjects])(session, out, most, &result.length);
	return result;
}

// trent_agree refuses a key that is on another curve than the peer's. The
// secret is made as an object, read into the caller's buffer and destroyed.
ck_result trent_agree(ck_functions *f, ck_ulong session, ck_ulong key,
	ck_byte *curve, ck_ulong curve_length, ck_byte *peer, ck_ulong peer_length,
	ck_byte *out, ck_ulong out_length)
{
	ck_byte own[64];
	ck_result result = trent_attribute(f, session, key, CKA_EC_PARAMS, own, sizeof(own));
	if (result.code != 0) {
		return result;
	}
	if (result.length != curve_length || memcmp(own, curve, curve_length) != 0) {
		result.code = CKR_DOMAIN_PARAMS_INVALID;
		return result;
	}
	ck_ecdh1_params params = {CKD_NULL, 0, NULL, peer_length, peer};
	ck_mechanism mechanism = {CKM_ECDH1_DERIVE, &params, sizeof(params)};
	ck_ulong class = CKO_SECRET_KEY, type = CKK_GENERIC_SECRET, secret = 0;
	ck_byte yes = 1, no = 0;
	ck_attribute template[] = {
		{CKA_CLASS, &class, sizeof(class)},
		{CKA_KEY_TYPE, &type, sizeof(type)},
		{CKA_VALUE_LEN, &out_length, sizeof(out_length)},
		{CKA_TOKEN, &no, 1},
		{CKA_PRIVATE, &yes, 1},
		{CKA_SENSITIVE, &no, 1},
		{CKA_EXTRACTABLE, &yes, 1},
	};
	result.code = ((derive_call)f->fn[C_DeriveKey])(session, &mechanism, key,
		template, sizeof(template) / sizeof(template[0]), &secret);
	if (result.code != 0) {
		return result;
	}
	result = trent_attribute(f, session, secret, CKA_VALUE, out, out_length);
	ck_ulong destroyed = ((destroy_call)f->fn[C_DestroyObject])(session, secret);
	if (result.code == 0) {
		result.code = destroyed;
	}
	return result;
}
