//go:build ignore

// A PKCS#11 library that hands every call to the one named MODULE, and makes
// the IVs of AES-GCM itself, as AWS CloudHSM does (WRITTEN: whatever IV is
// given is written over) or Luna in FIPS mode (APPENDED: none may be given, and
// its own stands after the tag). It makes STUCK IVs, then the last again and
// again. With VALUE_LEN secret keys are unwrapped only if the template has
// their length, as Luna demanded before firmware 7.9.3.
#include "shim.h"
#include <pthread.h>

typedef struct {
	byte_t *iv;
	ulong_t iv_length, iv_bits;
	byte_t *aad;
	ulong_t aad_length, tag_bits;
} ck_gcm_params;

enum { CKR_MECHANISM_PARAM_INVALID = 0x71, CKR_TEMPLATE_INCOMPLETE = 0xD0, CKR_BUFFER_TOO_SMALL = 0x150 };
enum { CKM_AES_GCM = 0x1087, CKA_CLASS = 0, CKA_VALUE_LEN = 0x161, CKO_SECRET_KEY = 4, TAG = 16 };

#ifndef IV_LENGTH
#ifdef APPENDED
#define IV_LENGTH 16
#else
#define IV_LENGTH 12
#endif
#endif

typedef ulong_t (*init_call)(ulong_t, ck_mechanism *, ulong_t);
typedef ulong_t (*crypt_call)(ulong_t, byte_t *, ulong_t, byte_t *, ulong_t *);
typedef ulong_t (*random_call)(ulong_t, byte_t *, ulong_t);
typedef ulong_t (*unwrap_call)(ulong_t, ck_mechanism *, ulong_t, byte_t *, ulong_t, ck_attribute *, ulong_t, ulong_t *);

// One operation for each session; sessions are few.
static struct { byte_t *given; byte_t iv[IV_LENGTH]; } operations[4096];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static ulong_t make_iv(ulong_t session, byte_t *iv) {
	ulong_t code = CKR_OK;
	pthread_mutex_lock(&lock);
	static byte_t last[IV_LENGTH];
	static long made;
#ifdef STUCK
	if (made < STUCK)
#endif
		code = ((random_call)real.fn[GenerateRandom])(session, last, IV_LENGTH);
	made++;
	memcpy(iv, last, IV_LENGTH);
	pthread_mutex_unlock(&lock);
	return code;
}

static ulong_t encrypt_init(ulong_t session, ck_mechanism *m, ulong_t key) {
	if (m->type != CKM_AES_GCM)
		return ((init_call)real.fn[EncryptInit])(session, m, key);
	ck_gcm_params params = *(ck_gcm_params *)m->parameter;
#ifdef APPENDED
	if (params.iv != NULL || params.iv_length != 0)
		return CKR_MECHANISM_PARAM_INVALID;
#else
	if (params.iv == NULL || params.iv_length != IV_LENGTH)
		return CKR_MECHANISM_PARAM_INVALID;
#endif
	byte_t *own = operations[session % 4096].iv;
	ulong_t code = make_iv(session, own);
	if (code != CKR_OK)
		return code;
	operations[session % 4096].given = params.iv;
	params.iv = own;
	params.iv_length = IV_LENGTH;
	params.iv_bits = 8 * IV_LENGTH;
	ck_mechanism ours = {CKM_AES_GCM, &params, sizeof(params)};
	return ((init_call)real.fn[EncryptInit])(session, &ours, key);
}

// Only AES-GCM is encrypted by with this library.
static ulong_t encrypt(ulong_t session, byte_t *in, ulong_t in_length, byte_t *out, ulong_t *out_length) {
#ifdef APPENDED
	if (*out_length < in_length + TAG + IV_LENGTH)
		return CKR_BUFFER_TOO_SMALL;
#endif
	ulong_t code = ((crypt_call)real.fn[Encrypt])(session, in, in_length, out, out_length);
	if (code != CKR_OK)
		return code;
#ifdef APPENDED
	memcpy(out + *out_length, operations[session % 4096].iv, IV_LENGTH);
	*out_length += IV_LENGTH;
#else
	// Late on purpose: the parameters must live until here.
	memcpy(operations[session % 4096].given, operations[session % 4096].iv, IV_LENGTH);
#endif
	return CKR_OK;
}

#ifdef VALUE_LEN
static ulong_t unwrap_key(ulong_t session, ck_mechanism *m, ulong_t key, byte_t *in, ulong_t in_length,
	ck_attribute *template, ulong_t count, ulong_t *object) {
	ck_attribute kept[64];
	ulong_t n = 0, class = CKO_SECRET_KEY;
	int has_length = 0;
	if (count > 64)
		return CKR_FUNCTION_FAILED;
	for (ulong_t i = 0; i < count; i++) {
		if (template[i].type == CKA_CLASS)
			class = *(ulong_t *)template[i].value;
		if (template[i].type == CKA_VALUE_LEN)
			has_length = 1; // the real library takes none
		else
			kept[n++] = template[i];
	}
	if (class == CKO_SECRET_KEY && !has_length)
		return CKR_TEMPLATE_INCOMPLETE;
	return ((unwrap_call)real.fn[UnwrapKey])(session, m, key, in, in_length, kept, n, object);
}
#endif

ulong_t C_GetFunctionList(ck_functions **list) {
	ulong_t code = stand_before(MODULE, list);
#if defined(WRITTEN) || defined(APPENDED)
	shown.fn[EncryptInit] = (void *)encrypt_init;
	shown.fn[Encrypt] = (void *)encrypt;
#else
	(void)encrypt_init;
	(void)encrypt;
#endif
#ifdef VALUE_LEN
	shown.fn[UnwrapKey] = (void *)unwrap_key;
#endif
	return code;
}
