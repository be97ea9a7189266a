package hsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// UnsupportedError says what this device lacks. Nothing is done in this
// process's memory in its place.
type UnsupportedError struct {
	Spec      string // AWS's name of the key spec or algorithm, such as ML_DSA_44
	Mechanism string // the CKM_ name that is missing, or that refuses
	Why       string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("this HSM cannot do %s: %s: %s", e.Spec, e.Mechanism, e.Why)
}

// refusals are the return codes of a device that has not what was asked for,
// as against one that is ill or busy.
var refusals = []uint{
	pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
	pkcs11.CKR_KEY_NOT_WRAPPABLE, pkcs11.CKR_KEY_UNEXTRACTABLE, pkcs11.CKR_KEY_SIZE_RANGE,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED,
	pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT,
	pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID,
	pkcs11.CKR_DOMAIN_PARAMS_INVALID, pkcs11.CKR_CURVE_NOT_SUPPORTED,
}

// refused turns a refusal into *UnsupportedError and leaves other errors.
func refused(spec string, mechanism uint, err error) error {
	var device *DeviceError
	if !errors.As(err, &device) || !slices.Contains(refusals, device.Code) {
		return err
	}
	return &UnsupportedError{spec, mechanismName(mechanism), device.Error()}
}

// tried remembers what the device was found to support.
type tried struct {
	mu      sync.Mutex
	answers map[string]answer // by question
}

type answer struct {
	err error // nil = supported
	at  time.Time
}

// doubtAfter is how long a device's no is believed: it may have been ill.
const doubtAfter = time.Minute

// ask answers a question from memory or by try, whose answer is kept if it
// says something about the device.
func (t *tried) ask(question string, try func() error) error {
	t.mu.Lock()
	told, known := t.answers[question]
	t.mu.Unlock()
	if known && (told.err == nil || time.Since(told.at) < doubtAfter) {
		return told.err
	}
	err := try()
	var unsupported *UnsupportedError
	if err != nil && !errors.As(err, &unsupported) {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.answers == nil {
		t.answers = map[string]answer{}
	}
	t.answers[question] = answer{err, time.Now()}
	return err
}

// Supports says whether the device can make keys of an AWS key spec, wrap and
// use them: nil, or *UnsupportedError, or ErrArgument for a spec and use that
// AWS has not. The first question about a kind of key pair is answered by
// making one, later ones from memory. Other errors say that the device could
// not be asked.
func (d *Member) Supports(spec string, use Use) error {
	sp, err := specFor(spec, use)
	if err != nil {
		return err
	}
	return d.tried.ask(fmt.Sprint(spec, use), func() error {
		if err := d.run(background, d.t.maker, nil, func(s *session, _ *domainKeys, _ []byte) error {
			return s.lacks(spec, sp, use)
		}); err != nil || sp.class != classPrivate {
			return err
		}
		if sp.like != "" {
			return d.supportsLike(spec, sp.like, use)
		}
		_, err := d.generatePair(background, spec, sp, use)
		return err
	})
}

func (d *Member) supportsLike(spec, like string, use Use) error {
	err := d.Supports(like, use)
	var unsupported *UnsupportedError
	if errors.As(err, &unsupported) {
		return &UnsupportedError{spec, unsupported.Mechanism, unsupported.Why}
	}
	return err
}

// lacks asks for the mechanisms that the spec and use need.
func (s *session) lacks(name string, sp spec, use Use) error {
	generate, using := uint(pkcs11.CKF_GENERATE), uint(pkcs11.CKF_ENCRYPT|pkcs11.CKF_DECRYPT)
	if sp.class == classPrivate {
		generate, using = pkcs11.CKF_GENERATE_KEY_PAIR, pkcs11.CKF_DECRYPT
	}
	switch use {
	case UseSign, UseMAC:
		using = pkcs11.CKF_SIGN
	case UseAgree:
		using = pkcs11.CKF_DERIVE
	case UseEncapsulate:
		using = ckfDecapsulate
	}
	if err := s.lacksMechanism(name, sp, sp.generate, generate); err != nil {
		return err
	}
	for _, m := range sp.uses[use] {
		if err := s.lacksMechanism(name, sp, m, using); err != nil {
			return err
		}
	}
	_, err := s.way(sp.class)
	if errors.Is(err, errNoWrap) {
		return &UnsupportedError{name, mechanismName(sp.class.wrapForms()[0].first()), "none of the wrapping mechanisms that the device has is right"}
	}
	return err
}

func (s *session) lacksMechanism(name string, sp spec, m, flags uint) error {
	info, err := s.t.module.p11.GetMechanismInfo(s.t.slot, mechanism(m))
	if isCode(err, pkcs11.CKR_MECHANISM_INVALID) {
		return &UnsupportedError{name, mechanismName(m), "the device does not have this mechanism"}
	}
	if err != nil {
		return deviceError("asking for "+mechanismName(m), err)
	}
	if info.Flags&flags != flags {
		return &UnsupportedError{name, mechanismName(m), "the device has this mechanism, but not for this use"}
	}
	if bits := uint(sp.size); sp.class == classPrivate && bits > 0 && info.MaxKeySize > 0 &&
		(bits < info.MinKeySize || bits > info.MaxKeySize) {
		return &UnsupportedError{name, mechanismName(m),
			fmt.Sprintf("the device takes keys of %d to %d bits", info.MinKeySize, info.MaxKeySize)}
	}
	return nil
}

// onMaker runs f where keys are made. If ctx ends first f still runs to its
// end, so f must clean up after itself.
func (d *Member) onMaker(ctx context.Context, f func(*session, *domainKeys) error) error {
	return d.run(ctx, d.t.maker, nil, func(s *session, keys *domainKeys, _ []byte) error { return f(s, keys) })
}
