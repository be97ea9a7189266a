package hsm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// IVSource says who makes the IVs of AES-GCM.
type IVSource string

// Sources of IVs. Whoever makes them: a device that takes other people's IVs
// cannot know that they do not repeat, and FIPS 140-3 (implementation guidance
// C.H) wants those of encryption made inside the module.
const (
	IVAuto      IVSource = "auto"      // the first of those below that the device takes
	IVProcess   IVSource = "process"   // 12 bytes of this process's generator
	IVHSM       IVSource = "hsm"       // 12 bytes of the device's, by C_GenerateRandom
	IVMechanism IVSource = "mechanism" // CKM_AES_GCM itself makes one and says which
)

const (
	ivSize = 12 // of IVs that a mechanism is not asked for (SP 800-38D §8.2.2)
	maxIV  = 16
)

// ivWay is how a member comes by IVs.
type ivWay struct {
	source IVSource
	// room is how many zeros the parameters hold. A mechanism with IVs of its
	// own writes over them (AWS CloudHSM), or wants none and appends its IV to
	// the output (Luna in FIPS mode).
	room int
}

var (
	ivOurs     = ivWay{IVProcess, ivSize}
	ivDevices  = ivWay{IVHSM, ivSize}
	ivWritten  = ivWay{IVMechanism, ivSize}
	ivAppended = ivWay{IVMechanism, 0}
)

func (w ivWay) String() string {
	switch w {
	case ivOurs:
		return "made by this process"
	case ivDevices:
		return "made by the HSM's generator"
	case ivWritten:
		return "made by the HSM for each message, zeros in the parameters"
	case ivAppended:
		return "made by the HSM for each message, none in the parameters"
	}
	return fmt.Sprintf("%s of %d bytes", w.source, w.room)
}

// ways lists what is tried for a setting, in order. Auto prefers an IV that
// needs no trust in how the device reports it, unless the vendor says that the
// device takes none.
func (v *Vendor) ways(setting IVSource) ([]ivWay, error) {
	switch setting {
	case "", IVAuto:
		ways := []ivWay{ivOurs, ivWritten, ivAppended}
		if v.ownIVs {
			ways = []ivWay{ivWritten, ivAppended, ivOurs}
		}
		return ways, nil
	case IVProcess:
		return []ivWay{ivOurs}, nil
	case IVHSM:
		return []ivWay{ivDevices}, nil
	case IVMechanism:
		return []ivWay{ivWritten, ivAppended}, nil
	}
	return nil, fmt.Errorf("%w: %q is no source of IVs", ErrArgument, setting)
}

// ivs is how this token's IVs are made; newProbe finds out. Before that, ours.
func (t *Token) ivs() ivWay {
	if w := t.iv.Load(); w != nil {
		return *w
	}
	return ivOurs
}

// fresh is the IV that the parameters of a message begin with.
func (w ivWay) fresh() []byte {
	iv := make([]byte, w.room)
	if w.source == IVProcess {
		_, _ = rand.Read(iv) // crashes rather than fail
	}
	return iv
}

// sealRequest is for what wants one message sealed. Its output is ciphertext,
// tag and IV.
func sealRequest(epoch uint64, w ivWay, aad, plaintext []byte) *request {
	r := newRequest(opEncrypt, epoch)
	r.ivs = w
	r.input(w.fresh(), aad, plaintext, nil, len(plaintext)+tagSize+maxIV)
	return r
}

// ivBlock is how many bytes of the device's generator a session takes at a
// time: IVs for 64 messages. They lie in memory until then, which harms
// nobody: an IV must be new, not secret.
const ivBlock = 64 * ivSize

// nextIV fills iv from the device's generator. A byte is used once.
func (s *session) nextIV(iv []byte) (code uint) {
	if len(s.random) < len(iv) {
		block := make([]byte, ivBlock)
		if code := s.t.module.native.random(s.handle, block); code != pkcs11.CKR_OK {
			return code
		}
		s.random = block
	}
	copy(iv, s.random)
	clear(s.random[:len(iv)])
	s.random = s.random[len(iv):]
	return pkcs11.CKR_OK
}

// seal encrypts and leaves ciphertext, tag and the IV that was used in r.out.
func (s *session) seal(r *request) (code uint) {
	switch r.ivs.source {
	case IVHSM:
		if code := s.nextIV(r.iv); code != pkcs11.CKR_OK {
			return code
		}
	case IVMechanism:
		clear(r.iv) // this may be the second try
	}
	var given [maxIV]byte
	copy(given[:], r.iv)
	n, code := s.t.module.native.gcm(false, s.handle, r.key, r.iv, r.aad, r.in, r.out)
	if code != pkcs11.CKR_OK {
		return code
	}
	body := len(r.in) + tagSize
	switch {
	case r.ivs.source != IVMechanism && !bytes.Equal(r.iv, given[:len(r.iv)]): // it was set to IVs of its own
		return ckrBadIV
	case n == body && len(r.iv) > 0:
		n += copy(r.out[n:], r.iv)
	case r.ivs.source == IVMechanism && (n == body+ivSize || n == body+maxIV):
	default:
		return ckrBadIV
	}
	iv := r.out[body:n]
	if isZero(iv) || bytes.Equal(iv, s.lastIV) {
		return ckrBadIV
	}
	s.lastIV = append(s.lastIV[:0], iv...)
	r.length = n
	return pkcs11.CKR_OK
}

func isZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

// chooseIVs tries the ways of the setting and keeps the first that the device
// takes. Each is tried on a session of its own, since a refused call may leave
// an operation behind.
func (s *session) chooseIVs() error {
	setting := s.t.cfg.IVSource
	ways, err := vendorOf(s.t.info).ways(setting)
	if err != nil {
		return err
	}
	var why []string
	for _, w := range ways {
		err := s.t.tryIVs(w)
		if errors.Is(err, errIVs) { // believe no device that says so once
			err = s.t.tryIVs(w)
		}
		if err == nil {
			s.t.iv.Store(&w)
			return nil
		}
		if !errors.Is(err, errIVs) {
			return err
		}
		why = append(why, fmt.Sprintf("%s: %v", w, err))
	}
	return fmt.Errorf("%w: the device takes no IVs of source %q (%s): set --hsm-iv-source to auto, or let trent doctor say which source it takes",
		ErrUnavailable, setting, strings.Join(why, "; "))
}

// errIVs: the device does something else with IVs than was tried. Any other
// error is of a device that is ill, which must not change how IVs are made.
var errIVs = errors.New("it does not use IVs in this way")

// ivRefusals are what devices answer to a message whose parameters or buffers
// they do not like. The last two say anything.
var ivRefusals = []uint{
	ckrBadIV,
	pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_ARGUMENTS_BAD,
	pkcs11.CKR_BUFFER_TOO_SMALL, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
	pkcs11.CKR_FUNCTION_REJECTED, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_GENERAL_ERROR,
}

// tryIVs seals two messages in this way, with a throw-away key, and demands
// that each opens with its own IV and not with the other's.
func (t *Token) tryIVs(w ivWay) error {
	s, err := t.openSession()
	if err != nil {
		return err
	}
	defer s.close()
	key, err := s.probeKey()
	if err != nil {
		return err
	}
	defer s.destroy(key)
	var ivs, sealed [2][]byte
	for i := range sealed {
		if ivs[i], sealed[i], err = s.sealProbe(key, w); err != nil {
			return err
		}
		if err := s.wantOpen(key, ivs[i], sealed[i]); err != nil {
			return err
		}
	}
	other := s.wantOpen(key, ivs[0], sealed[1])
	if other == nil || bytes.Equal(sealed[0], sealed[1]) {
		return fmt.Errorf("%w: two messages of different IVs do not differ", errIVs)
	}
	if !errors.Is(other, errIVs) {
		return other
	}
	return nil
}

// sealProbe seals probePlain.
func (s *session) sealProbe(key pkcs11.ObjectHandle, w ivWay) (iv, sealed []byte, err error) {
	r := sealRequest(0, w, nil, probePlain)
	defer r.end()
	r.key = key
	if code := s.seal(r); code != pkcs11.CKR_OK {
		err := error(&DeviceError{Doing: "sealing a probe", Code: code})
		if slices.Contains(ivRefusals, code) {
			err = fmt.Errorf("%w: %w", errIVs, err)
		}
		return nil, nil, err
	}
	iv, sealed = splitSealed(r.out[:r.length], len(probePlain))
	return iv, sealed, nil
}

// wantOpen answers errIVs if what was sealed does not open.
func (s *session) wantOpen(key pkcs11.ObjectHandle, iv, sealed []byte) error {
	plain := make([]byte, len(sealed))
	n, code := s.t.module.native.gcm(true, s.handle, key, bytes.Clone(iv), nil, sealed, plain)
	switch c := classify(code); {
	case code == pkcs11.CKR_OK && bytes.Equal(plain[:n], probePlain):
		return nil
	case code == pkcs11.CKR_OK, c == classForged, c == classData, slices.Contains(ivRefusals, code):
		return fmt.Errorf("%w: what it sealed does not open with the IV that it is said to have (%s)", errIVs, codeName(code))
	}
	return &DeviceError{Doing: "opening a probe", Code: code}
}

// splitSealed parts what seal left: the IV stands after ciphertext and tag.
func splitSealed(out []byte, plain int) (iv, sealed []byte) {
	at := plain + tagSize
	return out[at:], out[:at:at]
}

// IVCheck says whether the device takes IVs of a source.
type IVCheck struct {
	Source IVSource `json:"source"`
	Works  bool     `json:"works"`
	Chosen bool     `json:"chosen"`
	Detail string   `json:"detail,omitempty"`
}

// tryIVs is part of Examine, before all that encrypts.
func (r *Report) tryIVs(ctx context.Context, t *Token) {
	if err := t.onKeeperRetrying(ctx, func(s *session) error { return s.chooseIVs() }); err != nil {
		r.add(SeverityError, "%v", err)
	}
	for _, source := range []IVSource{IVProcess, IVHSM, IVMechanism} {
		check := IVCheck{Source: source}
		ways, err := r.Vendor.ways(source)
		for _, w := range ways {
			err = t.onKeeperRetrying(ctx, func(s *session) error { return s.t.tryIVs(w) })
			if check.Works = err == nil; check.Works {
				check.Detail, check.Chosen = w.String(), t.iv.Load() != nil && t.ivs() == w
				break
			}
		}
		if err != nil {
			check.Detail = err.Error()
		}
		r.IVs = append(r.IVs, check)
	}
}
