// Package faultshim builds a PKCS#11 library that stands before a real one,
// does to calls what a test tells it to, and counts sessions and session
// objects that live. The test tells it through a file that both have mapped,
// so that it may be loaded by another process.
package faultshim

import (
	_ "embed" // the library's source
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/trent-kms/trent/internal/shim"
)

//go:embed shim.c
var source []byte

// Action is what is done to a call.
type Action uint32

// The values are shim.c's.
const (
	nothing     Action = iota
	Fail               // answer Code
	Delay              // wait before the call
	Hang               // wait until the fault is cleared
	Crash              // abort the process
	LoseSession        // close the call's session behind its owner's back
	LoseAll            // close all sessions of its token
	Logout             // log out
	Shorten            // say that the output is one shorter than it is
	Lengthen           // say that the output is 16 MiB longer than it is
	Misdirect          // put another key, which this function saw before, in place of the call's
	Repeat             // of C_FindObjects: say that there are as many as there is room for
)

// Fault is what to do, and how often.
type Fault struct {
	Action Action
	Code   uint          // CKR_ value, of Fail
	Delay  time.Duration // of Delay
	// After: the device does what it is asked, then the fault happens. Of Fail,
	// Crash and losses.
	After bool
	// Times that it happens. 0 = until it is cleared.
	Times int
	// Probability of each call, from 0 to 1. 0 = 1.
	Probability float64
}

// Every stands for all functions, in place of a name. A fault of a function's
// own goes first.
const Every = "*"

// functions are PKCS#11's in the order of its function list.
var functions = strings.Fields(`
C_Initialize C_Finalize C_GetInfo C_GetFunctionList C_GetSlotList C_GetSlotInfo C_GetTokenInfo C_GetMechanismList
C_GetMechanismInfo C_InitToken C_InitPIN C_SetPIN C_OpenSession C_CloseSession C_CloseAllSessions C_GetSessionInfo
C_GetOperationState C_SetOperationState C_Login C_Logout C_CreateObject C_CopyObject C_DestroyObject C_GetObjectSize
C_GetAttributeValue C_SetAttributeValue C_FindObjectsInit C_FindObjects C_FindObjectsFinal C_EncryptInit C_Encrypt
C_EncryptUpdate C_EncryptFinal C_DecryptInit C_Decrypt C_DecryptUpdate C_DecryptFinal C_DigestInit C_Digest
C_DigestUpdate C_DigestKey C_DigestFinal C_SignInit C_Sign C_SignUpdate C_SignFinal C_SignRecoverInit C_SignRecover
C_VerifyInit C_Verify C_VerifyUpdate C_VerifyFinal C_VerifyRecoverInit C_VerifyRecover C_DigestEncryptUpdate
C_DecryptDigestUpdate C_SignEncryptUpdate C_DecryptVerifyUpdate C_GenerateKey C_GenerateKeyPair C_WrapKey C_UnwrapKey
C_DeriveKey C_SeedRandom C_GenerateRandom C_GetFunctionStatus C_CancelFunction C_WaitForSlotEvent`)

const count = 68

// rule and page are shim.c's rule and control.
type rule struct {
	action, after uint32
	code, micros  uint64
	perMillion, _ uint32
	left          int64
}

type page struct {
	rules             [count + 1]rule
	calls, injected   [count]uint64
	sessions, objects int64
}

// Shim is a library that misbehaves on demand.
type Shim struct {
	Module string   // path of the library
	Env    []string // what a process that loads it needs, as NAME=VALUE
	page   *page
	taken  map[string]int
}

// New builds one that stands before module, and sets what this process needs
// to load it. It lives as long as the test.
func New(t testing.TB, module string) *Shim {
	t.Helper()
	s := ForOthers(t, module)
	for _, variable := range s.Env {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	return s
}

// ForOthers is New for processes that are given Env: several that stand before
// one module.
func ForOthers(t testing.TB, module string) *Shim {
	t.Helper()
	control := filepath.Join(t.TempDir(), "control")
	if err := os.WriteFile(control, make([]byte, unsafe.Sizeof(page{})), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Shim{Module: shim.Build(t, source), taken: map[string]int{}}
	s.Env = []string{"TRENT_SHIM_MODULE=" + module, "TRENT_SHIM_CONTROL=" + control}
	s.open(t, control)
	return s
}

func (s *Shim) open(t testing.TB, control string) {
	t.Helper()
	file, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // what is mapped stays so
	memory, err := syscall.Mmap(int(file.Fd()), 0, int(unsafe.Sizeof(page{})), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	// It is never unmapped: the library has the page for as long as the process.
	s.page = (*page)(unsafe.Pointer(unsafe.SliceData(memory))) //nolint:gosec // page is what shim.c has there
	t.Cleanup(s.Clear)
}

func index(function string) int {
	for i, name := range functions {
		if name == function {
			return i
		}
	}
	if function != Every {
		panic("no such function: " + function)
	}
	return count
}

// Set has the fault happen to calls of function from now on, in place of what
// was set for it before.
func (s *Shim) Set(function string, f Fault) {
	r := &s.page.rules[index(function)]
	atomic.StoreUint32(&r.action, uint32(nothing))
	after := uint32(0)
	if f.After {
		after = 1
	}
	left := int64(f.Times)
	if f.Times == 0 {
		left = -1
	}
	atomic.StoreUint32(&r.after, after)
	atomic.StoreUint64(&r.code, uint64(f.Code))
	atomic.StoreUint64(&r.micros, uint64(f.Delay.Microseconds()))
	atomic.StoreUint32(&r.perMillion, uint32(f.Probability*1e6))
	atomic.StoreInt64(&r.left, left)
	atomic.StoreUint32(&r.action, uint32(f.Action))
}

// Clear ends all faults. Calls that hang go on.
func (s *Shim) Clear() {
	for i := range s.page.rules {
		atomic.StoreUint32(&s.page.rules[i].action, uint32(nothing))
	}
}

// Calls returns how often each function was called that was.
func (s *Shim) Calls() map[string]int { return named(&s.page.calls) }

// Injected returns how many faults happened to each function, where any did. A
// crash and a hang count when they begin.
func (s *Shim) Injected() map[string]int { return named(&s.page.injected) }

// Take returns how often function was called since the last Take.
func (s *Shim) Take(function string) int {
	total := s.Calls()[function]
	n := total - s.taken[function]
	s.taken[function] = total
	return n
}

func named(counters *[count]uint64) map[string]int {
	seen := map[string]int{}
	for i := range counters {
		if n := atomic.LoadUint64(&counters[i]); n > 0 {
			seen[functions[i]] = int(n)
		}
	}
	return seen
}

// Live returns how many sessions and session objects the process that loaded
// the library has on the device.
func (s *Shim) Live() (sessions, objects int) {
	return int(atomic.LoadInt64(&s.page.sessions)), int(atomic.LoadInt64(&s.page.objects))
}
