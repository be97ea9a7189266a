// The part of PKCS#11 v2.40 that the hot calls need, declared here because the
// standard's own headers cannot be had from another Go module.
#ifndef TRENT_NATIVE_H
#define TRENT_NATIVE_H

typedef unsigned char ck_byte;
typedef unsigned long ck_ulong;

typedef struct {
	ck_ulong type;
	void *value;
	ck_ulong length;
} ck_attribute;

// A library's function list (CK_FUNCTION_LIST): a version, then 68 pointers in
// the order of PKCS#11 §5.
typedef struct {
	struct { ck_byte major, minor; } version;
	void *fn[68];
} ck_functions;

typedef struct {
	ck_ulong code;   // CKR_...
	ck_ulong length; // bytes of output, or an object handle
} ck_result;

ck_functions *trent_load(const char *path, const char **why);

// trent_gcm encrypts or decrypts. A device that makes IVs of its own may write
// over iv when it encrypts, or be given none.
ck_result trent_gcm(ck_functions *f, int decrypt, ck_ulong session, ck_ulong key,
	ck_byte *iv, ck_ulong iv_length, ck_byte *aad, ck_ulong aad_length,
	ck_byte *in, ck_ulong in_length, ck_byte *out, ck_ulong out_capacity);

ck_result trent_sign(ck_functions *f, ck_ulong mechanism, ck_ulong session, ck_ulong key,
	ck_byte *in, ck_ulong in_length, ck_byte *out, ck_ulong out_capacity);

ck_ulong trent_verify(ck_functions *f, ck_ulong mechanism, ck_ulong session, ck_ulong key,
	ck_byte *in, ck_ulong in_length, ck_byte *mac, ck_ulong mac_length);

ck_ulong trent_random(ck_functions *f, ck_ulong session, ck_byte *out, ck_ulong length);

ck_result trent_import_secret(ck_functions *f, ck_ulong session,
	ck_byte *secret, ck_ulong length);

// trent_wrap is one call: some devices say a wrong length when they are asked
// for it first.
ck_result trent_wrap(ck_functions *f, ck_ulong mechanism, ck_byte *parameter, ck_ulong parameter_length,
	ck_ulong session, ck_ulong wrapper, ck_ulong key, ck_byte *out, ck_ulong out_capacity);

// trent_use signs, or decrypts, by any mechanism.
ck_result trent_use(ck_functions *f, int decrypt, ck_ulong mechanism,
	ck_byte *parameter, ck_ulong parameter_length, ck_ulong session, ck_ulong key,
	ck_byte *in, ck_ulong in_length, ck_byte *out, ck_ulong out_capacity);

ck_result trent_attribute(ck_functions *f, ck_ulong session, ck_ulong object,
	ck_ulong type, ck_byte *out, ck_ulong out_capacity);

// trent_slots lists those that have a token: at most that many of their numbers
// are written to out.
ck_result trent_slots(ck_functions *f, ck_ulong *out, ck_ulong most);

// trent_find writes at most that many handles to out.
ck_result trent_find(ck_functions *f, ck_ulong session, ck_ulong *out, ck_ulong most);

ck_result trent_agree(ck_functions *f, ck_ulong session, ck_ulong key,
	ck_byte *curve, ck_ulong curve_length, ck_byte *peer, ck_ulong peer_length,
	ck_byte *out, ck_ulong out_length);

#endif
