package softhsmtest

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// kindStateTable is keyStateTable for operations on other keys than symmetric
// ones: all of them want an enabled key.
var kindStateTable = []struct {
	operation string
	spec      types.KeySpec
	usage     types.KeyUsageType
	members   map[string]any
}{
	{"Sign", types.KeySpecEccNistP256, signs, map[string]any{"Message": []byte("m"), "SigningAlgorithm": "ECDSA_SHA_256"}},
	{"Verify", types.KeySpecEccNistP256, signs, map[string]any{"Message": []byte("m"), "SigningAlgorithm": "ECDSA_SHA_256"}},
	{"GetPublicKey", types.KeySpecEccNistP256, signs, map[string]any{}},
	{"GenerateMac", types.KeySpecHmac256, macs, map[string]any{"Message": []byte("m"), "MacAlgorithm": "HMAC_SHA_256"}},
	{"VerifyMac", types.KeySpecHmac256, macs, map[string]any{"Message": []byte("m"), "MacAlgorithm": "HMAC_SHA_256"}},
	{"DeriveSharedSecret", types.KeySpecEccNistP256, agrees, map[string]any{"KeyAgreementAlgorithm": "ECDH"}},
	{"GenerateDataKeyPair", types.KeySpecSymmetricDefault, encrypts, map[string]any{"KeyPairSpec": "ECC_NIST_P256"}},
	{"GenerateDataKeyPairWithoutPlaintext", types.KeySpecSymmetricDefault, encrypts, map[string]any{"KeyPairSpec": "ECC_NIST_P256"}},
	{"Encrypt", types.KeySpecRsa2048, encrypts, map[string]any{"Plaintext": []byte("m"), "EncryptionAlgorithm": "RSAES_OAEP_SHA_1"}},
	{"Decrypt", types.KeySpecRsa2048, encrypts, map[string]any{"EncryptionAlgorithm": "RSAES_OAEP_SHA_1"}},
	// A key for encapsulation cannot be made; its state is looked at first.
	{"Encapsulate", types.KeySpecEccNistP256, agrees, map[string]any{"EncapsulationAlgorithm": "ML_KEM"}},
	{"Decapsulate", types.KeySpecEccNistP256, agrees, map[string]any{"EncapsulationAlgorithm": "ML_KEM", "SharedSecretCiphertextBlob": []byte("c")}},
}

func TestKeyStatesOfKinds(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	ctx := context.Background()
	for _, row := range kindStateTable {
		t.Run(row.operation+"/"+string(row.spec), func(t *testing.T) {
			key := newKey(t, c, row.spec, row.usage)
			row.members["KeyId"] = *key.KeyId
			complete(t, c, key, row.operation, row.members)
			body := must(json.Marshal(row.members))(t)
			want := func(status int, code, text string) {
				t.Helper()
				a := d.raw(t, request{operation: row.operation, body: body})
				if a.status != status || a.code != code || a.text != text {
					t.Errorf("answered %d %s %q, want %d %s %q", a.status, a.code, a.text, status, code, text)
				}
				d.wantRecord(t, a.requestID, row.operation, code)
			}
			if row.operation == "Encapsulate" || row.operation == "Decapsulate" {
				want(400, "InvalidKeyUsageException", *key.Arn+" key usage is KEY_AGREEMENT which is not valid for "+row.operation+".")
			} else {
				want(200, "", "")
			}
			must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t)
			want(400, disabled, *key.Arn+" is disabled.")
			must(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId}))(t)
			want(400, invalid, *key.Arn+" is pending deletion.")
		})
	}
}

// complete adds what the enabled key itself has to make.
func complete(t *testing.T, c *kms.Client, key *types.KeyMetadata, operation string, members map[string]any) {
	t.Helper()
	ctx := context.Background()
	switch operation {
	case "Verify":
		members["Signature"] = signed(t, c, key, "ECDSA_SHA_256", "", []byte("m"))
	case "VerifyMac":
		members["Mac"] = must(c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: key.KeyId, MacAlgorithm: "HMAC_SHA_256", Message: []byte("m")}))(t).Mac
	case "DeriveSharedSecret":
		members["PublicKey"] = must(x509.MarshalPKIXPublicKey(must(ecdh.P256().GenerateKey(rand.Reader))(t).PublicKey()))(t)
	case "Decrypt":
		members["CiphertextBlob"] = must(c.Encrypt(ctx, &kms.EncryptInput{
			KeyId: key.KeyId, Plaintext: []byte("m"), EncryptionAlgorithm: "RSAES_OAEP_SHA_1"}))(t).CiphertextBlob
	}
}

// What records show of these calls is what CloudTrail shows, and no more.
func TestRecordsOfKinds(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	peer := must(x509.MarshalPKIXPublicKey(must(ecdh.P256().GenerateKey(rand.Reader))(t).PublicKey()))(t)
	for _, kind := range []struct {
		operation string
		key       *types.KeyMetadata
		members   map[string]any
		shown     string // beside keyId
	}{
		{"Sign", kindOf(t, c, types.KeySpecEccNistP256, signs),
			map[string]any{"Message": []byte(marker), "MessageType": "RAW", "SigningAlgorithm": "ECDSA_SHA_256"},
			`"messageType":"RAW","signingAlgorithm":"ECDSA_SHA_256"`},
		{"GenerateMac", kindOf(t, c, types.KeySpecHmac256, macs),
			map[string]any{"Message": []byte(marker), "MacAlgorithm": "HMAC_SHA_256"}, `"macAlgorithm":"HMAC_SHA_256"`},
		{"DeriveSharedSecret", kindOf(t, c, types.KeySpecEccNistP256, agrees),
			map[string]any{"KeyAgreementAlgorithm": "ECDH", "PublicKey": peer}, `"keyAgreementAlgorithm":"ECDH"`},
		{"GetPublicKey", kindOf(t, c, types.KeySpecEccNistP256, signs), map[string]any{}, ``},
		{"GenerateDataKeyPair", createKey(t, c),
			map[string]any{"KeyPairSpec": "ECC_NIST_P256", "EncryptionContext": map[string]string{"a": "b"}},
			`"keyPairSpec":"ECC_NIST_P256","encryptionContext":{"a":"b"}`},
		{"Encrypt", kindOf(t, c, types.KeySpecRsa2048, encrypts),
			map[string]any{"Plaintext": []byte(marker), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}, `"encryptionAlgorithm":"RSAES_OAEP_SHA_256"`},
	} {
		t.Run(kind.operation, func(t *testing.T) {
			kind.members["KeyId"] = *kind.key.KeyId
			a := d.raw(t, request{operation: kind.operation, body: must(json.Marshal(kind.members))(t)})
			if a.status != 200 {
				t.Fatalf("answered %d %s", a.status, a.body)
			}
			d.wantRecord(t, a.requestID, kind.operation, "")
			r := d.records(t, "record->>'requestID' = $1", a.requestID)[0]
			var got, want map[string]any
			shown := `{"keyId":"` + *kind.key.KeyId + `"`
			if kind.shown != "" {
				shown += "," + kind.shown
			}
			if err := json.Unmarshal([]byte(shown+"}"), &want); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(r.RequestParameters, &got); err != nil {
				t.Fatal(err)
			}
			if string(must(json.Marshal(got))(t)) != string(must(json.Marshal(want))(t)) {
				t.Errorf("requestParameters %s, want %s}", r.RequestParameters, shown)
			}
			if !r.ReadOnly || len(r.Resources) != 1 || r.Resources[0].ARN != *kind.key.Arn {
				t.Errorf("readOnly %v, resources %+v", r.ReadOnly, r.Resources)
			}
		})
	}
	d.wantNoPlaintext(t, marker)
}
