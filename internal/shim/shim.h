// What PKCS#11 libraries that stand before a real one have in common. A source
// defines C_GetFunctionList, which begins with stand_before, and then puts its
// own functions in shown.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

typedef unsigned long ulong_t;
typedef unsigned char byte_t;
typedef struct { ulong_t type; void *parameter; ulong_t length; } ck_mechanism;
typedef struct { ulong_t type; void *value; ulong_t length; } ck_attribute;

// CK_FUNCTION_LIST: a version, then pointers in the order of PKCS#11 v2.40 §5,
// of which those that shims know are named.
enum { FUNCTIONS = 68 };
enum {
	Initialize, Finalize, GetFunctionList = 3, GetSlotList, GetTokenInfo = 6, GetMechanismInfo = 8, InitPIN = 10,
	OpenSession = 12, CloseSession, CloseAllSessions, Login = 18, Logout, CreateObject, CopyObject, DestroyObject,
	GetAttributeValue = 24, FindObjects = 27, EncryptInit = 29, Encrypt, DecryptInit = 33, Decrypt, SignInit = 42, Sign,
	VerifyInit = 48, GenerateKey = 58, GenerateKeyPair, WrapKey, UnwrapKey, DeriveKey, GenerateRandom = 64
};
typedef struct {
	struct { byte_t major, minor; } version;
	void *fn[FUNCTIONS];
} ck_functions;

enum { CKR_OK = 0, CKR_FUNCTION_FAILED = 6 };

// The functions of the library behind, and those that are given out.
static ck_functions real, shown;

ulong_t C_GetFunctionList(ck_functions **list);

// stand_before has every call go to the library at path, and gives out shown.
static ulong_t stand_before(const char *path, ck_functions **list) {
	void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	ulong_t (*get)(ck_functions **) = library ? (ulong_t (*)(ck_functions **))dlsym(library, "C_GetFunctionList") : NULL;
	ck_functions *found;
	if (get == NULL || get(&found) != CKR_OK)
		return CKR_FUNCTION_FAILED;
	real = shown = *found;
	shown.fn[GetFunctionList] = (void *)C_GetFunctionList;
	*list = &shown;
	return CKR_OK;
}
