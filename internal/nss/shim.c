//go:build ignore

// A PKCS#11 library that hands every call to the one named MODULE, NSS softokn,
// which C_Initialize refuses without a string of parameters: that string is
// PARAMETERS. A token without a PIN gets PIN: its security officer has none.
#include "shim.h"

// CK_C_INITIALIZE_ARGS as NSS has it: its parameters stand before pReserved.
typedef struct {
	void *mutexes[4];
	ulong_t flags;
	const char *parameters;
	void *reserved;
} nss_arguments;

enum { CKF_OS_LOCKING_OK = 2, CKF_USER_PIN_INITIALIZED = 8, CKF_RW_SERIAL = 6, CKU_SO = 0 };
enum { DATABASE_SLOT = 2 }; // the one that keeps keys

// The beginning of CK_TOKEN_INFO, and room for the rest.
typedef struct { byte_t words[96]; ulong_t flags; byte_t rest[256]; } token_info;

typedef ulong_t (*initialize_call)(void *);
typedef ulong_t (*info_call)(ulong_t, token_info *);
typedef ulong_t (*open_call)(ulong_t, ulong_t, void *, void *, ulong_t *);
typedef ulong_t (*session_call)(ulong_t);
typedef ulong_t (*login_call)(ulong_t, ulong_t, const char *, ulong_t);
typedef ulong_t (*pin_call)(ulong_t, const char *, ulong_t);

static ulong_t set_pin(void) {
	token_info info;
	ulong_t session, code = ((info_call)real.fn[GetTokenInfo])(DATABASE_SLOT, &info);
	if (code != CKR_OK || (info.flags & CKF_USER_PIN_INITIALIZED) != 0)
		return code;
	code = ((open_call)real.fn[OpenSession])(DATABASE_SLOT, CKF_RW_SERIAL, NULL, NULL, &session);
	if (code != CKR_OK)
		return code;
	code = ((login_call)real.fn[Login])(session, CKU_SO, "", 0);
	if (code == CKR_OK) {
		code = ((pin_call)real.fn[InitPIN])(session, PIN, strlen(PIN));
		((session_call)real.fn[Logout])(session);
	}
	((session_call)real.fn[CloseSession])(session);
	return code;
}

static ulong_t initialize(void *unused) {
	nss_arguments arguments = {.flags = CKF_OS_LOCKING_OK, .parameters = PARAMETERS};
	(void)unused;
	ulong_t code = ((initialize_call)real.fn[Initialize])(&arguments);
	return code == CKR_OK ? set_pin() : code;
}

ulong_t C_GetFunctionList(ck_functions **list) {
	ulong_t code = stand_before(MODULE, list);
	shown.fn[Initialize] = (void *)initialize;
	return code;
}
