//go:build ignore

// A PKCS#11 library that hands every call to the one named by the variable
// TRENT_SHIM_MODULE, and writes a byte to the file TRENT_SHIM_LOGINS for each
// C_Login before it does so.
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

typedef unsigned long ck_rv;

// CK_FUNCTION_LIST: a version, then pointers in the order of PKCS#11 v2.40 §5.
typedef struct {
	struct { unsigned char major, minor; } version;
	void *fn[68];
} ck_functions;

enum { GET_FUNCTION_LIST = 3, LOGIN = 18 };
enum { CKR_OK = 0, CKR_FUNCTION_FAILED = 6 };

typedef ck_rv (*login_function)(unsigned long, unsigned long, unsigned char *, unsigned long);

static ck_functions shown;
static login_function real_login;

// A login that cannot be counted fails: the test must not see too few.
static ck_rv login(unsigned long session, unsigned long user, unsigned char *pin, unsigned long length) {
	const char *path = getenv("TRENT_SHIM_LOGINS");
	int log = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
	if (log < 0)
		return CKR_FUNCTION_FAILED;
	ssize_t written = write(log, "L", 1);
	close(log);
	return written == 1 ? real_login(session, user, pin, length) : CKR_FUNCTION_FAILED;
}

ck_rv C_GetFunctionList(ck_functions **list) {
	const char *path = getenv("TRENT_SHIM_MODULE");
	void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	ck_rv (*get)(ck_functions **) = library ? (ck_rv (*)(ck_functions **))dlsym(library, "C_GetFunctionList") : NULL;
	ck_functions *real;
	if (get == NULL || get(&real) != CKR_OK)
		return CKR_FUNCTION_FAILED;
	shown = *real;
	real_login = (login_function)real->fn[LOGIN];
	shown.fn[LOGIN] = (void *)login;
	shown.fn[GET_FUNCTION_LIST] = (void *)C_GetFunctionList;
	*list = &shown;
	return CKR_OK;
}
