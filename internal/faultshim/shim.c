//go:build ignore

// A PKCS#11 library that hands every call to the one named by the variable
// TRENT_SHIM_MODULE. On the way it does what the rules in the file named by
// TRENT_SHIM_CONTROL say, and counts there what it saw. The file is mapped into
// memory: a rule holds from the moment that it is written.
#include "shim.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

// Any function: see PASS.
typedef ulong_t (*call)(ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t);

enum { CKA_TOKEN = 1, CKA_PRIVATE = 2 };

// What follows is shared with faultshim.go, which says what it means.
enum { NOTHING, FAIL, DELAY, HANG, CRASH, LOSE_SESSION, LOSE_ALL, LOGOUT, SHORTEN, LENGTHEN, MISDIRECT, REPEAT };
typedef struct {
	uint32_t action, after;
	uint64_t code, micros;
	uint32_t per_million, pad;
	int64_t left; // times that it may still act; negative = no limit
} rule;
typedef struct {
	rule rules[FUNCTIONS + 1]; // the last is for every function
	uint64_t calls[FUNCTIONS], injected[FUNCTIONS];
	int64_t sessions, objects;
} control;

static control *shared;

// What this process has on the device. The mutex guards it.
enum { MANY = 1 << 16 };
static struct { ulong_t handle, slot; } sessions[MANY];
static struct { ulong_t handle, session; int private; } objects[MANY];
static int live_sessions, live_objects;
static ulong_t last[FUNCTIONS][2]; // two keys that the function was last given
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
// Read-locked by calls: sessions are lost between calls, or the count of what
// lives would be wrong, and many a library crashes.
static pthread_rwlock_t busy = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

// forget drops the objects of one session, or of all (0), or the private ones.
static void forget_objects(ulong_t session, int only_private)
{
	for (int i = 0; i < live_objects;)
		if ((session == 0 || objects[i].session == session) && (!only_private || objects[i].private))
			objects[i] = objects[--live_objects];
		else
			i++;
}

static void forget_sessions(ulong_t handle, ulong_t slot, int all)
{
	for (int i = 0; i < live_sessions;)
		if (all || (handle ? sessions[i].handle == handle : sessions[i].slot == slot)) {
			forget_objects(sessions[i].handle, 0);
			sessions[i] = sessions[--live_sessions];
		} else
			i++;
}

static ulong_t slot_of(ulong_t session)
{
	for (int i = 0; i < live_sessions; i++)
		if (sessions[i].handle == session)
			return sessions[i].slot;
	return live_sessions ? sessions[0].slot : 0;
}

static int flag(ck_attribute *list, ulong_t count, ulong_t type)
{
	for (ulong_t i = 0; i < count; i++)
		if (list[i].type == type && list[i].length == 1)
			return *(unsigned char *)list[i].value != 0;
	return 0;
}

static void made(ulong_t session, ulong_t template, ulong_t count, ulong_t *handle)
{
	ck_attribute *list = (ck_attribute *)template;
	if (flag(list, count, CKA_TOKEN) || live_objects == MANY)
		return;
	objects[live_objects].handle = *handle;
	objects[live_objects].session = session;
	objects[live_objects++].private = flag(list, count, CKA_PRIVATE);
}

// note keeps count of sessions and of session objects. A call succeeded.
static void note(int n, ulong_t *a)
{
	pthread_mutex_lock(&mutex);
	switch (n) {
	case Finalize: forget_sessions(0, 0, 1); break;
	case OpenSession:
		if (live_sessions < MANY) {
			sessions[live_sessions].handle = *(ulong_t *)a[4];
			sessions[live_sessions++].slot = a[0];
		}
		break;
	case CloseSession: forget_sessions(a[0], 0, 0); break;
	case CloseAllSessions: forget_sessions(0, a[0], 0); break;
	case Logout: forget_objects(0, 1); break;
	case CreateObject: made(a[0], a[1], a[2], (ulong_t *)a[3]); break;
	case CopyObject: made(a[0], a[2], a[3], (ulong_t *)a[4]); break;
	case GenerateKey: made(a[0], a[2], a[3], (ulong_t *)a[4]); break;
	case GenerateKeyPair:
		made(a[0], a[2], a[3], (ulong_t *)a[6]);
		made(a[0], a[4], a[5], (ulong_t *)a[7]);
		break;
	case UnwrapKey: made(a[0], a[5], a[6], (ulong_t *)a[7]); break;
	case DeriveKey: made(a[0], a[3], a[4], (ulong_t *)a[5]); break;
	case DestroyObject:
		for (int i = 0; i < live_objects; i++)
			if (objects[i].handle == a[1]) {
				objects[i] = objects[--live_objects];
				break;
			}
	}
	shared->sessions = live_sessions;
	shared->objects = live_objects;
	pthread_mutex_unlock(&mutex);
}

// misdirect puts the key that the function was given before in place of this.
static int misdirect(int n, ulong_t *a, int act)
{
	int at = n == DestroyObject || n == GetAttributeValue ? 1 : 2;
	if (n != DestroyObject && n != GetAttributeValue && n != EncryptInit && n != DecryptInit && n != SignInit &&
	    n != VerifyInit && n != WrapKey && n != UnwrapKey && n != DeriveKey)
		return 0;
	pthread_mutex_lock(&mutex);
	if (last[n][0] != a[at]) {
		last[n][1] = last[n][0];
		last[n][0] = a[at];
	}
	ulong_t other = last[n][1];
	pthread_mutex_unlock(&mutex);
	if (!act || other == 0)
		return 0;
	a[at] = other;
	return 1;
}

// MORE is longer than any buffer that a caller has for what it asks.
enum { MORE = 1 << 24 };

// resize takes one from the length of what came out, or adds MORE.
static int resize(int n, ulong_t *a, uint32_t action)
{
	ulong_t *length = NULL;
	switch (n) {
	case Encrypt: case Decrypt: case Sign: length = a[3] ? (ulong_t *)a[4] : NULL; break;
	case WrapKey: length = a[4] ? (ulong_t *)a[5] : NULL; break;
	case FindObjects: length = (ulong_t *)a[3]; break;
	case GetSlotList: length = a[1] ? (ulong_t *)a[2] : NULL; break;
	case GetAttributeValue: if (((ck_attribute *)a[2])->value) length = &((ck_attribute *)a[2])->length;
	}
	if (length == NULL || *length == 0)
		return 0;
	*length += action == SHORTEN ? -1 : MORE;
	return 1;
}

// lose takes sessions or the login away behind the caller's back.
static void lose(uint32_t action, int n, ulong_t *a)
{
	pthread_rwlock_wrlock(&busy);
	pthread_mutex_lock(&mutex);
	ulong_t session = live_sessions ? sessions[0].handle : 0;
	for (int i = 0; n > OpenSession && i < live_sessions; i++)
		if (sessions[i].handle == a[0])
			session = a[0];
	ulong_t slot = slot_of(session);
	pthread_mutex_unlock(&mutex);
	ulong_t with[8] = {action == LOSE_ALL ? slot : session};
	int what = action == LOSE_ALL ? CloseAllSessions : action == LOGOUT ? Logout : CloseSession;
	if (((call)real.fn[what])(with[0], 0, 0, 0, 0, 0, 0, 0) == 0)
		note(what, with);
	pthread_rwlock_unlock(&busy);
}

static void nap(uint64_t micros)
{
	struct timespec t = {micros / 1000000, micros % 1000000 * 1000};
	nanosleep(&t, NULL);
}

static int fires(rule *r)
{
	static __thread unsigned seed;
	if (__atomic_load_n(&r->action, __ATOMIC_ACQUIRE) == NOTHING)
		return 0;
	if (seed == 0)
		seed = (unsigned)(uintptr_t)&seed ^ (unsigned)time(NULL);
	if (r->per_million && (uint32_t)(rand_r(&seed) % 1000000) >= r->per_million)
		return 0;
	int64_t left = __atomic_load_n(&r->left, __ATOMIC_RELAXED);
	while (left > 0 && !__atomic_compare_exchange_n(&r->left, &left, left - 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
	return left != 0;
}

// pass makes one call, with what its rule does before or after it.
static ulong_t pass(int n, ulong_t *a)
{
	__atomic_fetch_add(&shared->calls[n], 1, __ATOMIC_RELAXED);
	rule *r = &shared->rules[n];
	int now = fires(r);
	if (!now)
		now = fires(r = &shared->rules[FUNCTIONS]);
	uint32_t action = now ? __atomic_load_n(&r->action, __ATOMIC_ACQUIRE) : NOTHING;
	int acted = action != NOTHING && action != HANG && action != CRASH, fail = action == FAIL;
	ulong_t code = r->code;
	if (action == HANG || action == CRASH) // afterwards there may be no process to count it
		__atomic_fetch_add(&shared->injected[n], 1, __ATOMIC_RELAXED);
	switch (action) {
	case DELAY: nap(r->micros); break;
	case HANG: while (__atomic_load_n(&r->action, __ATOMIC_ACQUIRE) == HANG) nap(1000); break;
	case CRASH: if (!r->after) abort(); break;
	case LOSE_SESSION: case LOSE_ALL: case LOGOUT: if (!r->after) lose(action, n, a);
	}
	acted &= misdirect(n, a, action == MISDIRECT) || action != MISDIRECT;
	int after = r->after;
	pthread_rwlock_rdlock(&busy);
	ulong_t rv = fail && !after ? code : ((call)real.fn[n])(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
	if (rv == 0 && !(fail && !after))
		note(n, a);
	pthread_rwlock_unlock(&busy);
	if (action == CRASH)
		abort();
	if (action == SHORTEN || action == LENGTHEN)
		acted = rv == 0 && resize(n, a, action);
	if (action == REPEAT && n == FindObjects && rv == 0)
		*(ulong_t *)a[3] = a[2];
	if (after && action >= LOSE_SESSION && action <= LOGOUT)
		lose(action, n, a);
	if (now && !acted && action != HANG && r->left >= 0) // it is still to come
		__atomic_fetch_add(&r->left, 1, __ATOMIC_RELAXED);
	if (acted)
		__atomic_fetch_add(&shared->injected[n], 1, __ATOMIC_RELAXED);
	return fail ? code : rv;
}

// All arguments of PKCS#11 are words. By the calling conventions of 64-bit
// Linux a function may be given more of them than it takes, and eight suffice.
#define PASS(n) static ulong_t pass_##n(ulong_t a, ulong_t b, ulong_t c, ulong_t d, \
	ulong_t e, ulong_t f, ulong_t g, ulong_t h) \
	{ ulong_t all[8] = {a, b, c, d, e, f, g, h}; return pass(n, all); }
#define TEN(do, t) do(t##0) do(t##1) do(t##2) do(t##3) do(t##4) do(t##5) do(t##6) do(t##7) do(t##8) do(t##9)
#define ALL(do) TEN(do, ) TEN(do, 1) TEN(do, 2) TEN(do, 3) TEN(do, 4) TEN(do, 5) \
	do(60) do(61) do(62) do(63) do(64) do(65) do(66) do(67)
ALL(PASS)
#define SHOW(n) shown.fn[n] = pass_##n;

ulong_t C_GetFunctionList(ck_functions **list)
{
	const char *page = getenv("TRENT_SHIM_CONTROL");
	int file = page ? open(page, O_RDWR | O_CLOEXEC) : -1;
	if (shared == NULL) { // a library is asked as often as it is opened
		shared = mmap(NULL, sizeof(control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		if (shared == MAP_FAILED)
			shared = NULL;
	}
	close(file);
	if (shared == NULL)
		return CKR_FUNCTION_FAILED;
	ulong_t code = stand_before(getenv("TRENT_SHIM_MODULE"), list);
	ALL(SHOW)
	shown.fn[GetFunctionList] = (void *)C_GetFunctionList;
	return code;
}
