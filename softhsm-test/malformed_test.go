package softhsmtest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // #nosec G505 -- AWS's wrapping algorithm
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// A refusal is a request with bytes in it that must be refused.
type refusal struct {
	what, operation string
	members         map[string]any
	code, text      string // "-" = AWS sends no text; "" = any
}

// refuseAll demands the refusals, their records, and an unchanged database.
func refuseAll(t *testing.T, d *deployment, all []refusal) {
	t.Helper()
	before := d.state(t)
	calls := sendAll(t, d, all, func(r refusal) request {
		return request{operation: r.operation, body: must(json.Marshal(r.members))(t)}
	}, func(r refusal, a answer) error {
		if a.status != 400 || a.code != r.code || (r.text == "-") == a.hasText || !strings.Contains("-"+a.text, r.text) {
			return fmt.Errorf("%s: answered %d %.300s, want %s %q", r.what, a.status, a.body, r.code, r.text)
		}
		return nil
	})
	d.wantRecords(t, calls)
	d.wantState(t, before)
}

// der is one DER value.
func der(tag byte, content ...[]byte) []byte {
	body := slices.Concat(content...)
	n := len(body)
	switch {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, body...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, body...)
	}
	return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, body...)
}

var (
	oidECPublicKey = []byte{0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1}
	oidP256        = []byte{0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}
)

// A peer's public key with any bit flipped, cut anywhere, or dressed up as
// something else is refused before it meets the private key, with no text.
func TestMalformedPeers(t *testing.T) {
	d := shared(t)
	key := kindOf(t, d.client(t), types.KeySpecEccNistP256, agrees)
	var all []refusal
	for what, peer := range malformedPeers(t) {
		all = append(all, refusal{what, "DeriveSharedSecret",
			map[string]any{"KeyId": *key.KeyId, "KeyAgreementAlgorithm": "ECDH", "PublicKey": peer}, "ValidationException", "-"})
	}
	refuseAll(t, d, all)
}

func malformedPeers(t *testing.T) map[string][]byte {
	t.Helper()
	point := must(ecdh.P256().GenerateKey(rand.Reader))(t).PublicKey().Bytes()
	spki := func(algorithm, bits []byte) []byte { return der(0x30, algorithm, der(0x03, bits)) }
	named := der(0x30, oidECPublicKey, oidP256)
	good := spki(named, append([]byte{0}, point...))
	if _, err := x509.ParsePKIXPublicKey(good); err != nil {
		t.Fatal(err)
	}
	peers := map[string][]byte{
		"8192 bytes":           append(bytes.Clone(good), make([]byte, 8192-len(good))...),
		"8192 bytes of a list": bytes.Repeat([]byte{0x30, 0x80}, 4096),
		"length of 4 GiB":      append([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}, good[2:]...),
		"length in 8 octets":   append([]byte{0x30, 0x88, 0, 0, 0, 0, 0, 0, 0, good[1]}, good[2:]...),
		"long form of length":  append([]byte{0x30, 0x81, good[1]}, good[2:]...),
		"indefinite length":    append(append([]byte{0x30, 0x80}, good[2:]...), 0, 0),
		"one byte":             {0x30},
		"zeros":                make([]byte, 91),
		"no parameters":        spki(der(0x30, oidECPublicKey), append([]byte{0}, point...)),
		"null parameters":      spki(der(0x30, oidECPublicKey, []byte{5, 0}), append([]byte{0}, point...)),
		"explicit parameters":  spki(der(0x30, oidECPublicKey, der(0x30, []byte{2, 1, 1}, der(0x30, oidP256))), append([]byte{0}, point...)),
		"unused bits":          spki(named, append([]byte{1}, point...)),
		"empty point":          spki(named, []byte{0}),
		"hybrid point":         spki(named, append([]byte{0, 6}, point[1:]...)),
		"coordinates cut":      spki(named, append([]byte{0}, point[:64]...)),
		"coordinates above p":  spki(named, append([]byte{0, 4}, bytes.Repeat([]byte{0xff}, 64)...)),
		"private key":          must(x509.MarshalPKCS8PrivateKey(must(ecdh.P256().GenerateKey(rand.Reader))(t)))(t),
		"PEM":                  []byte("-----BEGIN PUBLIC KEY-----\n"),
	}
	for i := range good {
		peers[fmt.Sprint("cut at ", i)] = good[:max(1, i)]
		for bit := range 8 {
			flipped := bytes.Clone(good)
			flipped[i] ^= 1 << bit
			peers[fmt.Sprintf("bit %d.%d flipped", i, bit)] = flipped
		}
	}
	return peers
}

// A parcel is what GetParametersForImport has answered, and a way to fill it.
type importParcel struct {
	key    *types.KeyMetadata
	token  []byte
	public *rsa.PublicKey
}

func parcelFor(t testing.TB, c *kms.Client, key *types.KeyMetadata, algorithm types.AlgorithmSpec) importParcel {
	t.Helper()
	out := must(c.GetParametersForImport(context.Background(), &kms.GetParametersForImportInput{
		KeyId: key.KeyId, WrappingAlgorithm: algorithm, WrappingKeySpec: types.WrappingKeySpecRsa2048}))(t)
	return importParcel{key, out.ImportToken, must(x509.ParsePKIXPublicKey(out.PublicKey))(t).(*rsa.PublicKey)}
}

func (p importParcel) wrap(t testing.TB, material []byte) []byte {
	t.Helper()
	return must(rsa.EncryptOAEP(sha1.New(), rand.Reader, p.public, material, nil))(t)
}

// members are those of an import of wrapped material for good.
func (p importParcel) members(wrapped []byte) map[string]any {
	return map[string]any{"KeyId": *p.key.KeyId, "ImportToken": p.token, "EncryptedKeyMaterial": wrapped,
		"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
}

// Material that is wrapped in any other way than was agreed cannot be opened.
func TestWrongWrapping(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	key := externalKey(t, c)
	direct := parcelFor(t, c, key, types.AlgorithmSpecRsaesOaepSha1)
	again := parcelFor(t, c, key, types.AlgorithmSpecRsaesOaepSha1)
	inner := parcelFor(t, c, key, types.AlgorithmSpecRsaAesKeyWrapSha1)
	material := bytes.Repeat([]byte{7}, 32)
	good, double := direct.wrap(t, material), wrapped(t, types.AlgorithmSpecRsaAesKeyWrapSha1, must(x509.MarshalPKIXPublicKey(inner.public))(t), material)
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	var all []refusal
	for what, row := range map[string]struct {
		parcel  importParcel
		wrapped []byte
	}{
		"another wrapping key":           {again, good},
		"OAEP with SHA-256":              {direct, must(rsa.EncryptOAEP(sha256.New(), rand.Reader, direct.public, material, nil))(t)},
		"OAEP with a label":              {direct, must(rsa.EncryptOAEP(sha1.New(), rand.Reader, direct.public, material, []byte("l")))(t)},
		"PKCS #1 v1.5":                   {direct, must(rsa.EncryptPKCS1v15(rand.Reader, direct.public, material))(t)}, //nolint:staticcheck // what must be refused
		"not wrapped":                    {direct, material},
		"not wrapped, of the right size": {direct, bytes.Repeat([]byte{1}, 256)},
		"above the modulus":              {direct, bytes.Repeat([]byte{0xff}, 256)},
		"a byte short":                   {direct, good[:255]},
		"a byte long":                    {direct, append(bytes.Clone(good), 0)},
		"6144 bytes":                     {direct, make([]byte, 6144)},
		"two layers for one":             {direct, double},
		"one layer for two":              {inner, good},
		"inner key altered":              {inner, flip(double, 0)},
		"inner wrapping altered":         {inner, flip(double, 256)},
		"inner wrapping cut":             {inner, double[:len(double)-8]},
		"inner wrapping cut unevenly":    {inner, double[:len(double)-1]},
		"no inner wrapping":              {inner, double[:256]},
	} {
		all = append(all, refusal{what, "ImportKeyMaterial", row.parcel.members(row.wrapped), "InvalidCiphertextException", "-"})
	}
	refuseAll(t, d, all)
}

// What is well wrapped but no key of the spec is refused by that name.
func TestMalformedMaterial(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	ctx := context.Background()
	private := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	pkcs8, sec1 := must(x509.MarshalPKCS8PrivateKey(private))(t), must(x509.MarshalECPrivateKey(private))(t)
	scalar := func(d []byte) []byte {
		return der(0x30, []byte{2, 1, 0}, der(0x30, oidECPublicKey, oidP256), der(0x04, der(0x30, []byte{2, 1, 1}, der(0x04, d))))
	}
	order := elliptic.P256().Params().N.Bytes()
	var all []refusal
	for spec, materials := range map[types.KeySpec]map[string][]byte{
		types.KeySpecEccNistP256: {
			"one byte": {0x30}, "noise": bytes.Repeat([]byte{0xa5}, 138), "empty sequence": {0x30, 0},
			"SEC 1": sec1, "cut": pkcs8[:len(pkcs8)-1], "length of 64 KiB": append([]byte{0x30, 0x83, 1, 0, 0}, pkcs8[3:]...),
			"scalar zero": scalar(make([]byte, 32)), "scalar of the order": scalar(order),
			"public key": must(x509.MarshalPKIXPublicKey(private.Public()))(t),
			"X25519":     must(x509.MarshalPKCS8PrivateKey(must(ecdh.X25519().GenerateKey(rand.Reader))(t)))(t),
			"P-384":      must(x509.MarshalPKCS8PrivateKey(must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)))(t),
			"an AES key": bytes.Repeat([]byte{1}, 32),
		},
		types.KeySpecHmac384:          {"one byte": {1}, "47 bytes": make([]byte, 47), "129 bytes": make([]byte, 129)},
		types.KeySpecSymmetricDefault: {"one byte": {1}, "24 bytes": make([]byte, 24), "64 bytes": make([]byte, 64)},
	} {
		usage := map[types.KeySpec]types.KeyUsageType{types.KeySpecEccNistP256: signs, types.KeySpecHmac384: macs}[spec]
		key := must(c.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage, Origin: types.OriginTypeExternal}))(t).KeyMetadata
		p := parcelFor(t, c, key, types.AlgorithmSpecRsaesOaepSha1)
		for what, material := range materials {
			all = append(all, refusal{string(spec) + ": " + what, "ImportKeyMaterial", p.members(p.wrap(t, material)), "IncorrectKeyMaterialException", ""})
		}
	}
	refuseAll(t, d, all)
}

// An import token of which any byte is altered is no token; one that was used
// for another key or deployment is none either, and a whole one imports again.
func TestAlteredImportTokens(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	p := parcelFor(t, c, externalKey(t, c), types.AlgorithmSpecRsaesOaepSha1)
	material := p.wrap(t, bytes.Repeat([]byte{9}, 32))
	var all []refusal
	add := func(what string, token []byte) {
		altered := p
		altered.token = token
		all = append(all, refusal{what, "ImportKeyMaterial", altered.members(material), "InvalidImportTokenException", ""})
	}
	for i := range p.token {
		token := bytes.Clone(p.token)
		token[i] ^= 0x40
		add(fmt.Sprintf("byte %d", i), token)
	}
	for n := 1; n < len(p.token); n += 1 + n/8 {
		add(fmt.Sprintf("cut at %d", n), p.token[:n])
	}
	add("a byte more", append(bytes.Clone(p.token), 0))
	add("6144 bytes", make([]byte, 6144))
	add("of another key", parcelFor(t, c, externalKey(t, c), types.AlgorithmSpecRsaesOaepSha1).token)
	refuseAll(t, d, all)
	for range 2 { // a replay within its time changes nothing
		a := d.raw(t, request{operation: "ImportKeyMaterial", body: must(json.Marshal(p.members(material)))(t)})
		if a.status != 200 {
			t.Fatalf("the whole token: %d %s", a.status, a.body)
		}
	}
	rotations := must(c.ListKeyRotations(context.Background(), &kms.ListKeyRotationsInput{
		KeyId: p.key.KeyId, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial}))(t).Rotations
	if len(rotations) != 1 || describe(t, c, *p.key.KeyId).KeyState != types.KeyStateEnabled {
		t.Errorf("a token that was used twice left %d materials", len(rotations))
	}
}

// What is said of material's life has AWS's texts.
func TestImportExpirations(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	p := parcelFor(t, c, externalKey(t, c), types.AlgorithmSpecRsaesOaepSha1)
	material := p.wrap(t, make([]byte, 32))
	var all []refusal
	for what, row := range map[string]struct {
		members map[string]any
		text    string
	}{
		"no date":           {map[string]any{"ExpirationModel": nil}, "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"},
		"no date, expires":  {map[string]any{"ExpirationModel": "KEY_MATERIAL_EXPIRES"}, "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"},
		"in the past":       {map[string]any{"ExpirationModel": nil, "ValidTo": 1.5}, ""},
		"before the epoch":  {map[string]any{"ExpirationModel": nil, "ValidTo": -1}, ""},
		"in the year 9999":  {map[string]any{"ExpirationModel": nil, "ValidTo": 253402300799}, ""},
		"date and for good": {map[string]any{"ValidTo": 253402300799}, ""},
		"id of new":         {map[string]any{"ImportType": "NEW_KEY_MATERIAL", "KeyMaterialId": strings.Repeat("0", 64)}, ""},
	} {
		members := p.members(material)
		for name, value := range row.members {
			members[name] = value
		}
		all = append(all, refusal{what, "ImportKeyMaterial", members, "ValidationException", row.text})
	}
	refuseAll(t, d, all)
}

// Policies that are none, and tags that AWS does not take, in every operation
// that takes them.
func TestMalformedPoliciesAndTags(t *testing.T) {
	d := shared(t)
	key := createKey(t, d.client(t))
	var all []refusal
	for what, row := range map[string]struct{ policy, code string }{
		"no JSON":              {"hoge", "MalformedPolicyDocumentException"},
		"cut":                  {defaultPolicy[:len(defaultPolicy)-1], "MalformedPolicyDocumentException"},
		"two documents":        {defaultPolicy + defaultPolicy, "MalformedPolicyDocumentException"},
		"a list":               {"[" + defaultPolicy + "]", "MalformedPolicyDocumentException"},
		"a string":             {`"Allow"`, "MalformedPolicyDocumentException"},
		"null":                 {"null", "MalformedPolicyDocumentException"},
		"a member twice":       {strings.Replace(defaultPolicy, `"Effect" : "Allow"`, `"Effect" : "Allow", "Effect" : "Allow"`, 1), "MalformedPolicyDocumentException"},
		"deep list":            {strings.Repeat("[", 16000) + strings.Repeat("]", 16000), "MalformedPolicyDocumentException"},
		"above AWS's 32 KiB":   {defaultPolicy + strings.Repeat(" ", 32768), "LimitExceededException"},
		"most that JSON takes": {`{"Id":"` + strings.Repeat("x", 131000) + `"}`, "LimitExceededException"},
	} {
		all = append(all, refusal{what, "PutKeyPolicy", map[string]any{"KeyId": *key.KeyId, "Policy": row.policy}, row.code, ""},
			refusal{what, "CreateKey", map[string]any{"Policy": row.policy}, row.code, ""})
	}
	many := make([]types.Tag, 51)
	for i := range many {
		many[i] = tag(fmt.Sprint("k", i), "v")
	}
	for text, tags := range map[string][]types.Tag{
		"Too many tags":                         many,
		"Duplicate tag keys":                    {tag("a", "1"), tag("b", "1"), tag("a", "1")},
		"Tags beginning with aws: are reserved": {tag("a", "1"), tag("aWs:x", "1")},
	} {
		all = append(all, refusal{text, "TagResource", map[string]any{"KeyId": *key.KeyId, "Tags": tags}, "TagException", text},
			refusal{text, "CreateKey", map[string]any{"Tags": tags}, "TagException", text})
	}
	refuseAll(t, d, all)
}
