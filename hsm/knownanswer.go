package hsm

import (
	"bytes"
	"context"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/miekg/pkcs11"
)

// AnswerCheck is a published test vector that was put to the token.
type AnswerCheck struct {
	Name   string `json:"name"`
	Source string `json:"source"`
	Result string `json:"result"`           // one of the Answer constants
	Detail string `json:"detail,omitempty"` // what was refused, or came instead
}

// Results of an AnswerCheck.
const (
	AnswerRight   = "right"
	AnswerWrong   = "wrong"   // the device computes something else: never use it
	AnswerRefused = "untried" // it takes no keys in the clear, lacks the mechanism, or is ill
)

// errWrongAnswer is what a knownAnswer finds when the device computes something else.
var errWrongAnswer = errors.New("the device's answer is not the published one")

// errInTheClear: the device does not take the test's key.
var errInTheClear = errors.New("it cannot be asked")

// knownAnswer puts one vector to a session. Its keys are published and live
// as session objects for the length of the test.
type knownAnswer struct {
	name, source string
	try          func(*session) error
}

var knownAnswers = []knownAnswer{
	{"AES-256-GCM", "McGrew and Viega, The Galois/Counter Mode of Operation, test case 16", (*session).answerGCM},
	{"AES key wrap", "RFC 3394 §4.6", answerForm(formKW)},
	{"AES key wrap with padding, 20 bytes", "RFC 5649 §6", answerForm(formKWP)},
	{"HMAC-SHA-256", "RFC 4231 §4.7", (*session).answerHMAC},
	{"AES-256-CMAC", "NIST SP 800-38B, example D.3", (*session).answerCMAC},
	{"ECDSA P-256 with SHA-256", "RFC 6979 §A.2.5", (*session).answerECDSA},
	{"RSASSA-PKCS1-v1_5, 2048 bits", "key of RFC 9500 §2.1", (*session).answerRSA},
}

// tryAnswers is part of Examine.
func (r *Report) tryAnswers(ctx context.Context, t *Token) {
	for _, known := range knownAnswers {
		check := AnswerCheck{Name: known.name, Source: known.source, Result: AnswerRight}
		err := t.onKeeperRetrying(ctx, known.try)
		code, refused := codeOf(err)
		unsupported := new(UnsupportedError)
		switch {
		case err == nil:
		case errors.As(err, &unsupported):
			check.Result, check.Detail = AnswerRefused, err.Error()
		case errors.Is(err, errWrongAnswer):
			check.Result, check.Detail = AnswerWrong, err.Error()
			r.add(SeverityError, "known-answer test of %s (%s): %v; do not use this device, and report it to its vendor", known.name, known.source, err)
		case refused && untriable(code):
			check.Result, check.Detail = AnswerRefused, err.Error()
		default:
			check.Result, check.Detail = AnswerRefused, err.Error()
			r.add(SeverityError, "known-answer test of %s (%s) could not be made: %v; see to the device and run doctor again", known.name, known.source, err)
		}
		r.Answers = append(r.Answers, check)
	}
}

// untriable says that a code tells of what the device will not try, rather
// than of a wrong computation.
func untriable(code uint) bool {
	return slices.Contains(refusals, code) || slices.Contains(templateRefusals, code) ||
		code == pkcs11.CKR_USER_NOT_LOGGED_IN || code == pkcs11.CKR_SESSION_READ_ONLY
}

func fromHex(text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		panic(err) // a constant of this file is misspelt
	}
	return b
}

// put makes a session object of a published secret. Only its uses are asked
// for: some devices refuse keys that are good for everything.
func (s *session) put(keyType uint, value []byte, uses ...uint) (pkcs11.ObjectHandle, error) {
	object, err := s.t.module.p11.CreateObject(s.handle, append(usage(uses...),
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_KEY_TYPE, keyType),
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, true),
		attr(pkcs11.CKA_VALUE, value)))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errInTheClear, deviceError("taking a published test key in the clear", err))
	}
	return object, nil
}

func (s *session) answerGCM() error {
	key, err := s.put(pkcs11.CKK_AES, fromHex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"),
		pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT)
	if err != nil {
		return err
	}
	defer s.destroy(key)
	iv, aad := fromHex("cafebabefacedbaddecaf888"), fromHex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
	plain := fromHex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" +
		"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39")
	want := fromHex("522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" +
		"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" + "76fc6ece0f4e1768cddf8853bb2d551b")
	n := s.t.module.native
	out := make([]byte, len(want))
	if s.t.ivs().source != IVMechanism { // the published IV cannot be had else
		length, code := n.gcm(false, s.handle, key, iv, aad, plain, out)
		if code != pkcs11.CKR_OK {
			return &DeviceError{Doing: "encrypting", Code: code}
		}
		if !bytes.Equal(out[:length], want) {
			return errWrongAnswer
		}
	}
	length, code := n.gcm(true, s.handle, key, iv, aad, want, out)
	if code != pkcs11.CKR_OK || !bytes.Equal(out[:length], plain) {
		return fmt.Errorf("%w when it decrypts (%s)", errWrongAnswer, codeName(code))
	}
	want[0] ^= 1
	if _, code = n.gcm(true, s.handle, key, iv, aad, want, out); code == pkcs11.CKR_OK {
		return fmt.Errorf("%w: it opens an altered ciphertext", errWrongAnswer)
	}
	return nil
}

// answerForm puts a form's vector to the mechanism that Trent takes for it.
func answerForm(form wrapForm) func(*session) error {
	return func(s *session) error {
		number, err := s.wayOfForm(form)
		if err != nil {
			return err
		}
		return s.answerWrap(wrapMechanism{number, form})
	}
}

func (s *session) answerWrap(m wrapMechanism) error {
	if m.form == formKW {
		return s.answerKeyWrap(m.number)
	}
	return s.answerKeyWrapPad(m.number)
}

func (s *session) answerKeyWrap(mechanism uint) error {
	kek, err := s.put(pkcs11.CKK_AES, fromHex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"),
		pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP)
	if err != nil {
		return err
	}
	defer s.destroy(kek)
	key, err := s.put(pkcs11.CKK_AES, fromHex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f"), pkcs11.CKA_ENCRYPT)
	if err != nil {
		return err
	}
	defer s.destroy(key)
	wrapped, err := s.wrap(wrapWay{classAES, mechanism}, kek, key)
	if err != nil {
		return err
	}
	if !bytes.Equal(wrapped, fromHex("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21")) {
		return errWrongAnswer
	}
	return nil
}

// answerKeyWrapPad unwraps the RFC's example, which no padding to eight bytes
// can have made.
func (s *session) answerKeyWrapPad(mechanism uint) error {
	kek, err := s.put(pkcs11.CKK_AES, fromHex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"), pkcs11.CKA_UNWRAP)
	if err != nil {
		return err
	}
	defer s.destroy(kek)
	secret := fromHex("c37b7e6492584340bed12207808941155068f738")
	object, err := s.unwrapLength(wrapWay{classGeneric, mechanism}, kek, fromHex("138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"),
		len(secret), useTemplate(pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SIGN))
	if err != nil {
		return err
	}
	defer s.destroy(object)
	return s.wantHMAC(object, secret)
}

func (s *session) answerHMAC() error {
	secret := bytes.Repeat([]byte{0xaa}, 131) // devices may refuse shorter ones than the digest
	key, err := s.put(pkcs11.CKK_GENERIC_SECRET, secret, pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY)
	if err != nil {
		return err
	}
	defer s.destroy(key)
	mac, err := s.mac("computing HMAC", pkcs11.CKM_SHA256_HMAC, key, []byte("Test Using Larger Than Block-Size Key - Hash Key First"), macSize)
	if err != nil {
		return err
	}
	if !bytes.Equal(mac, fromHex("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54")) {
		return errWrongAnswer
	}
	return nil
}

func (s *session) answerCMAC() error {
	key, err := s.put(pkcs11.CKK_AES, fromHex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"), pkcs11.CKA_SIGN)
	if err != nil {
		return err
	}
	defer s.destroy(key)
	mac, err := s.mac("computing CMAC", pkcs11.CKM_AES_CMAC, key, fromHex("6bc1bee22e409f96e93d7e117393172a"), 16)
	if err != nil {
		return err
	}
	if !bytes.Equal(mac, fromHex("28a7023f452e8f82bd4bf28d8c37c35c")) {
		return errWrongAnswer
	}
	return nil
}

func (s *session) answerECDSA() error {
	curve, err := p256.parameters()
	if err != nil {
		return err
	}
	point, err := asn1.Marshal(fromHex("04" + "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6" +
		"7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"))
	if err != nil {
		return fmt.Errorf("encoding a point: %w", err)
	}
	digest := fromHex("af2bdbe1aa9b6ec1e2ade1d694f41fc71a831d0268e9891562113d8a62add1bf") // of "sample"
	signature := fromHex("efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716" +
		"f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8")
	return s.answerSignature(pkcs11.CKM_ECDSA, digest, signature,
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC), attr(pkcs11.CKA_EC_PARAMS, curve), attr(pkcs11.CKA_EC_POINT, point))
}

func (s *session) answerRSA() error {
	modulus := fromHex(
		"b0f9e81943a7ae9892aade17ca7c40f8744fed2f8148e6c8eaa27b7d001548fb5192ab28b56c5060b118ccd131e59487" +
			"4c6ca989b56c27296f09fb93a034df32e97c6ff0998cfd8e6f42dda58acd1fa97986f144f3d154d67650175e6854b3a9" +
			"52003bc06887b8455ac2b19f7b2f76504ebc98ec945571b07892150ddc6a74ca0fbcd35497ce81534daf9418844b13ae" +
			"a31f9d5a6b9557bbdf619efd4e887f2d42b8dd8bc987eae1bf89cab85ee21e356305df6c07a8838e3ef41c595dcce43d" +
			"afc49123ef4d8abba93d3905e4028d7ba91484a27596e07b4b6ed992f077b524d3dcfe7ddd5549be7cce8da035cfa0b3" +
			"fb8f9e46f732b2a86b460165c08f5313")
	signature := fromHex(
		"169833c7302c0adc0a8d0258ebf97db62aadee6372aa372cb30604dfdb2bbcb1763eeb87ef91ef74696227f324f8e70e" +
			"b2153fa24de20cd4dc2dc11a847c8880b9a92367392e86c0539bc135b3175e6295d6bc2aa6b1cf8f99431f3dd2703f01" +
			"372bdd691a5c2b047092ea2d8600cb79caafa41cd961213b1ec588fbffbdc73c36a1c68503af474f429e2365246917db" +
			"e7b7dc51c63040324f71f1622daa98db1114f99c35c316e11ad18c4d8cad0634d28497a40b6e6d199fa7401eb5fc4e12" +
			"08ecf40713dc5a8cd52ad65a2cc9548478348f11fb6ed42745d9fa908283732215ab96130d521cdc17de126f8446bbec" +
			"e3b1a15d8bebe6ae02b876477611612b")
	digest := fromHex("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20")
	info := append(bytes.Clone(signing["RSASSA_PKCS1_V1_5_SHA_256"].prefix), digest...)
	return s.answerSignature(pkcs11.CKM_RSA_PKCS, info, signature,
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), attr(pkcs11.CKA_MODULUS, modulus),
		attr(pkcs11.CKA_PUBLIC_EXPONENT, big.NewInt(65537).Bytes()))
}

// answerSignature has the device verify a published signature, and refuse it
// for other data.
func (s *session) answerSignature(mechanism uint, signed, signature []byte, public ...*pkcs11.Attribute) error {
	key, err := s.t.module.p11.CreateObject(s.handle, append(public,
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_VERIFY, true)))
	if err != nil {
		return deviceError("taking a public key", err)
	}
	defer s.destroy(key)
	n := s.t.module.native
	switch code := n.verify(mechanism, s.handle, key, signed, signature); {
	case code == pkcs11.CKR_OK:
	case classify(code) == classForged:
		return errWrongAnswer
	default:
		return &DeviceError{Doing: "verifying", Code: code}
	}
	signed[len(signed)-1] ^= 1
	if n.verify(mechanism, s.handle, key, signed, signature) == pkcs11.CKR_OK {
		return fmt.Errorf("%w: it takes a signature of other data", errWrongAnswer)
	}
	return nil
}
