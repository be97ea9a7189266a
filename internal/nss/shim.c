//go:build ignore

// A PKCS#11 library that hands every call to the one named MODULE, NSS softokn,
// which C_Initialize refuses without a string of parameters: that string is
// PARAMETERS.
#include <dlfcn.h>
#include <stddef.h>

typedef unsigned long ulong_t;
typedef unsigned char byte_t;

// CK_FUNCTION_LIST: a version, then pointers in the order of PKCS#11 v2.40 §5.
typedef struct {
	struct { byte_t major, minor; } version;
	void *fn[68];
} ck_functions;

// CK_C_INITIALIZE_ARGS as NSS has it: its parameters stand before pReserved.
typedef struct {
	void *mutexes[4];
	ulong_t flags;
	const char *parameters;
	void *reserved;
} nss_arguments;

enum { INITIALIZE = 0, GET_FUNCTION_LIST = 3, CKR_OK = 0, CKR_FUNCTION_FAILED = 6, CKF_OS_LOCKING_OK = 2 };

static ck_functions shown, real;

static ulong_t initialize(void *unused) {
	nss_arguments arguments = {.flags = CKF_OS_LOCKING_OK, .parameters = PARAMETERS};
	(void)unused;
	return ((ulong_t (*)(void *))real.fn[INITIALIZE])(&arguments);
}

ulong_t C_GetFunctionList(ck_functions **list) {
	void *library = dlopen(MODULE, RTLD_NOW | RTLD_LOCAL);
	ulong_t (*get)(ck_functions **) = library ? (ulong_t (*)(ck_functions **))dlsym(library, "C_GetFunctionList") : NULL;
	ck_functions *found;
	if (get == NULL || get(&found) != CKR_OK)
		return CKR_FUNCTION_FAILED;
	real = *found;
	shown = real;
	shown.fn[INITIALIZE] = (void *)initialize;
	shown.fn[GET_FUNCTION_LIST] = (void *)C_GetFunctionList;
	*list = &shown;
	return CKR_OK;
}
