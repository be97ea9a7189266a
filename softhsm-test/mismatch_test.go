package softhsmtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// An algorithmUse is an operation that takes an algorithm.
type algorithmUse struct {
	operation string
	usage     types.KeyUsageType
	member    string // that names the algorithm
	keyMember string
	more      map[string]any
}

var algorithmUses = []algorithmUse{
	{"Sign", signs, "SigningAlgorithm", "KeyId", map[string]any{"Message": []byte("m")}},
	{"Verify", signs, "SigningAlgorithm", "KeyId", map[string]any{"Message": []byte("m"), "Signature": []byte("s")}},
	{"Encrypt", encrypts, "EncryptionAlgorithm", "KeyId", map[string]any{"Plaintext": []byte("m")}},
	{"Decrypt", encrypts, "EncryptionAlgorithm", "KeyId", map[string]any{"CiphertextBlob": []byte("c")}},
	// The ciphertext is added: its key is found before another's usage counts.
	{"ReEncrypt", encrypts, "SourceEncryptionAlgorithm", "SourceKeyId", nil},
	{"ReEncrypt", encrypts, "DestinationEncryptionAlgorithm", "DestinationKeyId", nil},
	{"GenerateMac", macs, "MacAlgorithm", "KeyId", map[string]any{"Message": []byte("m")}},
	{"VerifyMac", macs, "MacAlgorithm", "KeyId", map[string]any{"Message": []byte("m"), "Mac": []byte("c")}},
	{"DeriveSharedSecret", agrees, "KeyAgreementAlgorithm", "KeyId", map[string]any{"PublicKey": []byte("p")}},
	{"Encapsulate", kem, "EncapsulationAlgorithm", "KeyId", nil},
	{"Decapsulate", kem, "EncapsulationAlgorithm", "KeyId", map[string]any{"SharedSecretCiphertextBlob": []byte("c")}},
}

// A mismatch is a request whose key cannot do what is asked.
type mismatch struct {
	operation, algorithm string
	key                  *types.KeyMetadata
	body                 []byte
	code, text           string
}

// Every algorithm of every operation is tried on a key of every spec and usage
// that does not have it.
func TestAlgorithmsThatKeysHaveNot(t *testing.T) {
	const atLeast = 800
	d := shared(t)
	c := d.client(t)
	symmetric := createKey(t, c)
	source := encrypt(t, c, *symmetric.KeyId, "m", nil)
	var all []mismatch
	for _, use := range algorithmUses {
		if use.operation == "ReEncrypt" {
			use.more = map[string]any{"CiphertextBlob": source, "DestinationKeyId": *symmetric.KeyId}
		}
		all = append(all, use.on(t, symmetric, "SYMMETRIC_DEFAULT")...)
		for _, kind := range keyKinds {
			all = append(all, use.on(t, kindOf(t, c, kind.spec, kind.usage), kind.algorithms)...)
		}
	}
	before := d.state(t)
	calls := sendAll(t, d, all, func(m mismatch) request { return request{operation: m.operation, body: m.body} }, mismatch.judge)
	d.wantState(t, before)
	d.wantRecords(t, calls)
	t.Logf("%d mismatches", len(all))
	if len(all) < atLeast {
		t.Errorf("%d mismatches, want at least %d", len(all), atLeast)
	}
}

// on makes the requests that a key with these algorithms must refuse.
func (u algorithmUse) on(t *testing.T, key *types.KeyMetadata, has string) (all []mismatch) {
	t.Helper()
	source := u.operation == "Decrypt" || u.keyMember == "SourceKeyId"
	model := modelOf(t)
	input := model.Shapes[model.Operations[u.operation].Input]
	for _, algorithm := range model.Shapes[input.Members[u.member]].Enum {
		m := mismatch{operation: u.operation, algorithm: algorithm, key: key, code: "InvalidKeyUsageException"}
		switch {
		case key.KeyUsage != u.usage && source:
			m.code, m.text = "IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation."
		case key.KeyUsage != u.usage:
			m.text = fmt.Sprintf("%s key usage is %s which is not valid for %s.", *key.Arn, key.KeyUsage, u.operation)
		case !slices.Contains(strings.Fields(has), algorithm):
			m.text = fmt.Sprintf("Algorithm %s is incompatible with key spec %s.", algorithm, key.KeySpec)
		default:
			continue
		}
		members := map[string]any{}
		maps.Copy(members, u.more)
		members[u.keyMember], members[u.member] = *key.KeyId, algorithm
		m.body = must(json.Marshal(members))(t)
		all = append(all, m)
	}
	return all
}

func (m mismatch) judge(a answer) error {
	if a.status != 400 || a.code != m.code || a.text != m.text || a.requestID == "" {
		return fmt.Errorf("%s with a key of %s for %s: answered %d %s, want %s %q",
			m.algorithm, m.key.KeySpec, m.key.KeyUsage, a.status, a.body, m.code, m.text)
	}
	return nil
}

// What only symmetric keys for encryption have is refused for each other kind.
func TestSymmetricKeysOnly(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	var all []mismatch
	for _, kind := range keyKinds {
		key := kindOf(t, c, kind.spec, kind.usage)
		for operation, row := range map[string]struct {
			code    string
			members map[string]any
		}{
			"GenerateDataKey":                     {"InvalidKeyUsageException", map[string]any{"KeySpec": "AES_256"}},
			"GenerateDataKeyWithoutPlaintext":     {"InvalidKeyUsageException", map[string]any{"NumberOfBytes": 16}},
			"GenerateDataKeyPair":                 {"InvalidKeyUsageException", map[string]any{"KeyPairSpec": "ECC_NIST_P256"}},
			"GenerateDataKeyPairWithoutPlaintext": {"InvalidKeyUsageException", map[string]any{"KeyPairSpec": "ECC_NIST_P256"}},
			"EnableKeyRotation":                   {"UnsupportedOperationException", map[string]any{}},
			"DisableKeyRotation":                  {"UnsupportedOperationException", map[string]any{}},
			"RotateKeyOnDemand":                   {"UnsupportedOperationException", map[string]any{}},
			"GetParametersForImport":              {"UnsupportedOperationException", map[string]any{"WrappingAlgorithm": "RSAES_OAEP_SHA_1", "WrappingKeySpec": "RSA_2048"}},
			"ImportKeyMaterial":                   {"UnsupportedOperationException", map[string]any{"ImportToken": []byte("x"), "EncryptedKeyMaterial": []byte("x")}},
			"DeleteImportedKeyMaterial":           {"UnsupportedOperationException", map[string]any{}},
		} {
			row.members["KeyId"] = *key.KeyId
			all = append(all, mismatch{operation: operation, algorithm: operation, key: key, body: must(json.Marshal(row.members))(t), code: row.code})
		}
	}
	before := d.state(t)
	d.wantRecords(t, sendAll(t, d, all, func(m mismatch) request { return request{operation: m.operation, body: m.body} },
		func(m mismatch, a answer) error {
			if m.operation == "RotateKeyOnDemand" && a.hasText {
				return fmt.Errorf("%s of a key of %s: %s has a text", m.operation, m.key.KeySpec, a.body)
			}
			m.text = a.text // whatever it is
			return m.judge(a)
		}))
	d.wantState(t, before)
}
