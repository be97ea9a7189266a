package softhsmtest

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// wellFormed is a body for each built operation that an administrator could
// send for the key.
func wellFormed(keyID string, blob []byte) map[string]any {
	key := map[string]any{"KeyId": keyID}
	with := func(more map[string]any) map[string]any {
		more["KeyId"] = keyID
		return more
	}
	alias := map[string]any{"AliasName": "alias/denied", "TargetKeyId": keyID}
	return map[string]any{
		"CancelKeyDeletion": key, "DescribeKey": key, "DisableKey": key, "EnableKey": key, "GetKeyPolicy": key,
		"ListKeyPolicies": key, "ListResourceTags": key, "ScheduleKeyDeletion": key,
		"CreateAlias": alias, "UpdateAlias": alias, "DeleteAlias": map[string]any{"AliasName": "alias/denied"},
		"CreateKey": map[string]any{}, "ListKeys": map[string]any{}, "ListAliases": map[string]any{},
		"Decrypt":                         map[string]any{"CiphertextBlob": blob},
		"Encrypt":                         with(map[string]any{"Plaintext": []byte(marker)}),
		"GenerateDataKey":                 with(map[string]any{"KeySpec": "AES_256"}),
		"GenerateDataKeyWithoutPlaintext": with(map[string]any{"KeySpec": "AES_256"}),
		"GenerateRandom":                  map[string]any{"NumberOfBytes": 8},
		"PutKeyPolicy":                    with(map[string]any{"Policy": defaultPolicy}),
		"ReEncrypt":                       map[string]any{"CiphertextBlob": blob, "DestinationKeyId": keyID},
		"TagResource":                     with(map[string]any{"Tags": []any{map[string]any{"TagKey": "k", "TagValue": "v"}}}),
		"UntagResource":                   with(map[string]any{"TagKeys": []any{"k"}}),
		"UpdateKeyDescription":            with(map[string]any{"Description": "d"}),
		"GetPublicKey":                    key,
		"Sign":                            with(map[string]any{"Message": blob, "SigningAlgorithm": "ECDSA_SHA_256"}),
		"Verify":                          with(map[string]any{"Message": blob, "Signature": blob, "SigningAlgorithm": "ECDSA_SHA_256"}),
		"GenerateMac":                     with(map[string]any{"Message": blob, "MacAlgorithm": "HMAC_SHA_256"}),
		"VerifyMac":                       with(map[string]any{"Message": blob, "Mac": blob, "MacAlgorithm": "HMAC_SHA_256"}),
		"DeriveSharedSecret":              with(map[string]any{"KeyAgreementAlgorithm": "ECDH", "PublicKey": blob}),
		"Encapsulate":                     with(map[string]any{"EncapsulationAlgorithm": "ML_KEM"}),
		"Decapsulate":                     with(map[string]any{"EncapsulationAlgorithm": "ML_KEM", "SharedSecretCiphertextBlob": blob}),

		"GenerateDataKeyPair":                 with(map[string]any{"KeyPairSpec": "ECC_NIST_P256"}),
		"GenerateDataKeyPairWithoutPlaintext": with(map[string]any{"KeyPairSpec": "ECC_NIST_P256"}),
		"EnableKeyRotation":                   key, "DisableKeyRotation": key, "GetKeyRotationStatus": key,
		"RotateKeyOnDemand": key, "ListKeyRotations": key, "GetKeyLastUsage": key, "DeleteImportedKeyMaterial": key,
		"ReplicateKey": with(map[string]any{"ReplicaRegion": otherRegion}), "UpdatePrimaryRegion": with(map[string]any{"PrimaryRegion": otherRegion}),
		"GetParametersForImport": with(map[string]any{"WrappingAlgorithm": "RSAES_OAEP_SHA_1", "WrappingKeySpec": "RSA_2048"}),
		"ImportKeyMaterial":      with(map[string]any{"ImportToken": blob, "EncryptedKeyMaterial": blob, "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}),
	}
}

// A principal without rights is denied every operation, and each denial is
// recorded once.
func TestDefaultDeny(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	if err := createAlias(c, "alias/denied", *key.KeyId); err != nil {
		t.Fatal(err)
	}
	nobody := d.principal(t, "nobody", "Active")
	bodies := wellFormed(*key.KeyId, blob)
	for _, operation := range built {
		t.Run(operation, func(t *testing.T) {
			body, err := json.Marshal(bodies[operation])
			if err != nil {
				t.Fatal(err)
			}
			a := d.raw(t, request{operation: operation, body: body, key: &nobody})
			a.want(t, 400, "AccessDeniedException")
			d.wantRecord(t, a.requestID, operation, "AccessDeniedException")
			r := d.records(t, "record->>'requestID' = $1", a.requestID)[0]
			if r.UserIdentity.UserName != "nobody" || r.UserIdentity.AccessKeyID != nobody.ID {
				t.Errorf("recorded as %+v", r.UserIdentity)
			}
		})
	}
	for _, operation := range unbuilt {
		t.Run(operation, func(t *testing.T) {
			a := d.raw(t, request{operation: operation, body: []byte(`{}`), key: &nobody})
			a.want(t, 400, "AccessDeniedException")
			d.wantRecord(t, a.requestID, operation, a.code)
		})
	}
	if seen := describe(t, c, *key.KeyId); !seen.Enabled {
		t.Error("a denied call had an effect")
	}
}

// A principal without rights does not learn which keys exist.
func TestDenialTellsNothing(t *testing.T) {
	d := shared(t)
	key := createKey(t, d.client(t))
	nobody := d.principal(t, "nobody-curious", "Active")
	const none = "00000000-0000-4000-8000-000000000000"
	ask := func(id string) string {
		a := d.raw(t, request{operation: "DescribeKey", body: []byte(`{"KeyId":"` + id + `"}`), key: &nobody})
		return strings.ReplaceAll(string(a.body), id, "ID")
	}
	if there, absent := ask(*key.KeyId), ask(none); there != absent {
		t.Errorf("a key that exists is denied with %s, one that does not with %s", there, absent)
	}
}

func TestInactiveAccessKey(t *testing.T) {
	d := shared(t)
	off := d.principal(t, "switched-off", "Inactive")
	_, err := newClient(d.url, off, http.DefaultTransport).ListKeys(context.Background(), nil)
	wantCode(t, err, "UnrecognizedClientException", "The security token included in the request is invalid.")
}
