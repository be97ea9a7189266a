package softhsmtest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/internal/enclave"
)

// attestedDeployment serves with an enclave's root as the trusted one.
func attestedDeployment(t *testing.T) (*deployment, *enclave.Enclave) {
	t.Helper()
	e := enclave.New(t, enclave.Config{})
	d := newDeployment(t, "")
	d.serve(t, "TRENT_ATTESTATION_ROOTS="+file(t, e.Roots()))
	return d, e
}

func recipientOf(document []byte) *types.RecipientInfo {
	return &types.RecipientInfo{AttestationDocument: document, KeyEncryptionAlgorithm: types.KeyEncryptionMechanismRsaesOaepSha256}
}

// An answer for an enclave is opened by OpenSSL with the enclave's key, and
// nothing in it is in the clear.
func TestRecipient(t *testing.T) {
	d, e := attestedDeployment(t)
	c := d.client(t)
	ctx := context.Background()
	key := createKey(t, c)
	recipient := recipientOf(e.Document(t, time.Now()))
	with := map[string]string{"for": "an enclave"}

	blob := encrypt(t, c, *key.KeyId, marker, with)
	decrypted := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: with, Recipient: recipient}))(t)
	wantSealed(t, e, decrypted.CiphertextForRecipient, decrypted.Plaintext, decrypted.KeyMaterialId, []byte(marker))

	data := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256, EncryptionContext: with, Recipient: recipient}))(t)
	opened := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: data.CiphertextBlob, EncryptionContext: with}))(t)
	wantSealed(t, e, data.CiphertextForRecipient, data.Plaintext, data.KeyMaterialId, opened.Plaintext)

	pair := must(c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: key.KeyId, KeyPairSpec: types.DataKeyPairSpecRsa4096, Recipient: recipient}))(t)
	opened = must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: pair.PrivateKeyCiphertextBlob}))(t)
	wantSealed(t, e, pair.CiphertextForRecipient, pair.PrivateKeyPlaintext, pair.KeyMaterialId, opened.Plaintext)
	wantPair(t, pair.KeyPairSpec, opened.Plaintext, pair.PublicKey)

	random := must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1024), Recipient: recipient}))(t)
	if random.Plaintext != nil || len(e.Open(t, random.CiphertextForRecipient)) != 1024 {
		t.Error("GenerateRandom is not sealed as it should be")
	}

	rsa := newKey(t, c, types.KeySpecRsa2048, encrypts)
	sealed := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: rsa.KeyId, Plaintext: []byte(marker), EncryptionAlgorithm: "RSAES_OAEP_SHA_256"}))(t)
	decrypted = must(c.Decrypt(ctx, &kms.DecryptInput{KeyId: rsa.KeyId, CiphertextBlob: sealed.CiphertextBlob, EncryptionAlgorithm: "RSAES_OAEP_SHA_256", Recipient: recipient}))(t)
	wantSealed(t, e, decrypted.CiphertextForRecipient, decrypted.Plaintext, decrypted.KeyMaterialId, []byte(marker))

	agreeing := newKey(t, c, types.KeySpecEccNistP384, agrees)
	peer := must(x509.MarshalPKIXPublicKey(must(ecdh.P384().GenerateKey(rand.Reader))(t).PublicKey()))(t)
	agree := &kms.DeriveSharedSecretInput{KeyId: agreeing.KeyId, KeyAgreementAlgorithm: "ECDH", PublicKey: peer}
	secret := must(c.DeriveSharedSecret(ctx, agree))(t).SharedSecret
	agree.Recipient = recipient
	shared := must(c.DeriveSharedSecret(ctx, agree))(t)
	wantSealed(t, e, shared.CiphertextForRecipient, shared.SharedSecret, nil, secret)
	for _, plaintext := range [][]byte{[]byte(marker), opened.Plaintext, secret} {
		d.wantNoPlaintext(t, string(plaintext[len(plaintext)-min(24, len(plaintext)):]))
	}

	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: with, Recipient: recipient, DryRun: aws.Bool(true)})
	wantError[*types.DryRunOperationException](t, err, "")
}

func wantSealed(t testing.TB, e *enclave.Enclave, sealed, open []byte, materialID *string, want []byte) {
	t.Helper()
	if open != nil || materialID != nil {
		t.Error("the answer for a recipient has the plaintext or the key material id in it")
	}
	if bytes.Contains(sealed, want) || !bytes.Equal(e.Open(t, sealed), want) {
		t.Errorf("the envelope does not open to the %d bytes that it should", len(want))
	}
}

// The record says which environment had the answer.
func TestRecipientRecorded(t *testing.T) {
	d, e := attestedDeployment(t)
	calls := &recorder{}
	c := newClient(d.url, d.admin, calls)
	ctx := context.Background()
	key := createKey(t, c)
	recipient := recipientOf(e.Document(t, time.Now()))
	must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8), Recipient: recipient}))(t)
	must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, NumberOfBytes: aws.Int32(8), Recipient: recipient}))(t)
	tpm := e.Payload(t, time.Now())
	delete(tpm, "pcrs")
	tpm["nitrotpm_pcrs"], tpm["module_id"] = map[int][]byte{0: enclave.PCR(0), 4: enclave.PCR(4), 7: enclave.PCR(7)}, `i-"quoted"-tpm`
	must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8), Recipient: recipientOf(e.Sign(t, tpm))}))(t)

	pcr := func(i byte) string { return hex.EncodeToString(enclave.PCR(i)) }
	ofEnclave := map[string]string{
		"attestationDocumentModuleId": enclave.ModuleID, "attestationDocumentEnclaveImageDigest": pcr(0),
		"attestationDocumentEnclavePCR1": pcr(1), "attestationDocumentEnclavePCR2": pcr(2), "attestationDocumentEnclavePCR3": pcr(3),
		"attestationDocumentEnclavePCR4": pcr(4), "attestationDocumentEnclavePCR8": pcr(8),
	}
	for i, want := range []map[string]any{
		{"recipient": ofEnclave},
		{"recipient": ofEnclave, "keyMaterialId": *key.CurrentKeyMaterialId},
		{"recipient": map[string]string{
			"attestationDocumentModuleId": `i-"quoted"-tpm`, "attestationDocumentNitroTPMPCR4": pcr(4), "attestationDocumentNitroTPMPCR7": pcr(7),
		}},
	} {
		var got string
		id := calls.all()[i+1].RequestID
		if err := d.pool.QueryRow(ctx, "SELECT record->>'additionalEventData' FROM audit_records WHERE record->>'requestID' = $1", id).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if text := must(json.Marshal(want))(t); !sameJSON(t, got, string(text)) {
			t.Errorf("additionalEventData %s, want %s", got, text)
		}
	}
}

func sameJSON(t testing.TB, a, b string) bool {
	t.Helper()
	var trees [2]any
	for i, text := range []string{a, b} {
		if err := json.Unmarshal([]byte(text), &trees[i]); err != nil {
			t.Fatal(err)
		}
	}
	return bytes.Equal(must(json.Marshal(trees[0]))(t), must(json.Marshal(trees[1]))(t))
}

// What is not an enclave's document of now gets no answer, on any operation.
func TestRecipientRefused(t *testing.T) {
	d, e := attestedDeployment(t)
	c := d.client(t)
	key, agreeing := createKey(t, c), newKey(t, c, types.KeySpecEccNistP256, agrees)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	now := time.Now()
	good := e.Document(t, now)
	altered := bytes.Clone(good)
	altered[len(altered)/2] ^= 1
	noKey := e.Payload(t, now)
	noKey["public_key"] = nil
	const algorithm = types.KeyEncryptionMechanismRsaesOaepSha256
	for name, refusal := range map[string]struct {
		recipient types.RecipientInfo
		text      string
	}{
		"stale":            {*recipientOf(e.Document(t, now.Add(-6*time.Minute))), "its timestamp is more than 5 minutes off"},
		"another root":     {*recipientOf(enclave.New(t, enclave.Config{}).Document(t, now)), "its root certificate is not one that this deployment trusts"},
		"expired":          {*recipientOf(enclave.New(t, enclave.Config{At: now.Add(-4 * time.Hour)}).Document(t, now)), "its root certificate is not"},
		"altered":          {*recipientOf(altered), "The attestation document is not valid: "},
		"trailing byte":    {*recipientOf(append(bytes.Clone(good), 0)), "it is not a COSE_Sign1"},
		"no public key":    {*recipientOf(e.Sign(t, noKey)), "it has no public_key to answer to"},
		"oversized":        {*recipientOf(make([]byte, 20000)), "it has not 1 to 16512 bytes"},
		"above AWS's size": {*recipientOf(make([]byte, 262145)), "'recipient.attestationDocument' failed to satisfy constraint"},
		"empty":            {*recipientOf([]byte{}), "'recipient.attestationDocument' failed to satisfy constraint"},
		"no document":      {types.RecipientInfo{KeyEncryptionAlgorithm: algorithm}, "AttestationDocument is required"},
		"no algorithm":     {types.RecipientInfo{AttestationDocument: good}, "KeyEncryptionAlgorithm is required"},
		"SHA-1":            {types.RecipientInfo{AttestationDocument: good, KeyEncryptionAlgorithm: "RSAES_OAEP_SHA_1"}, "'recipient.keyEncryptionAlgorithm' failed to satisfy constraint"},
	} {
		t.Run(name, func(t *testing.T) {
			for operation, err := range withRecipient(c, *key.KeyId, *agreeing.KeyId, blob, &refusal.recipient) {
				t.Run(operation, func(t *testing.T) { wantCode(t, err, "ValidationException", refusal.text) })
			}
		})
	}
	// A recipient tells a principal without rights nothing.
	nobody := d.principal(t, "nobody-attested", "Active")
	body := must(json.Marshal(map[string]any{"NumberOfBytes": 8, "Recipient": recipientOf(altered)}))(t)
	a := d.raw(t, request{operation: "GenerateRandom", body: body, key: &nobody})
	a.want(t, 400, "AccessDeniedException")
	wantDecrypt(t, c, blob, marker, nil)
}

// Without configured roots there is no one to believe.
func TestRecipientWithoutRoots(t *testing.T) {
	c := shared(t).client(t)
	key, agreeing := createKey(t, c), kindOf(t, c, types.KeySpecEccNistP256, agrees)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	recipient := recipientOf(enclave.New(t, enclave.Config{}).Document(t, time.Now()))
	for operation, err := range withRecipient(c, *key.KeyId, *agreeing.KeyId, blob, recipient) {
		t.Run(operation, func(t *testing.T) {
			wantError[*types.UnsupportedOperationException](t, err, "this deployment trusts no attestation root")
		})
	}
}

// withRecipient calls every operation that takes a recipient.
func withRecipient(c *kms.Client, keyID, agreeing string, blob []byte, recipient *types.RecipientInfo) map[string]error {
	ctx := context.Background()
	_, decrypt := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, Recipient: recipient})
	_, dataKey := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &keyID, KeySpec: "AES_256", Recipient: recipient})
	_, pair := c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &keyID, KeyPairSpec: "ECC_NIST_P256", Recipient: recipient})
	_, random := c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8), Recipient: recipient})
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return map[string]error{"making a peer": err}
	}
	spki, err := x509.MarshalPKIXPublicKey(peer.PublicKey())
	if err != nil {
		return map[string]error{"making a peer": err}
	}
	_, agree := c.DeriveSharedSecret(ctx, &kms.DeriveSharedSecretInput{
		KeyId: &agreeing, KeyAgreementAlgorithm: "ECDH", PublicKey: spki, Recipient: recipient,
	})
	return map[string]error{
		"Decrypt": decrypt, "GenerateDataKey": dataKey, "GenerateDataKeyPair": pair, "GenerateRandom": random, "DeriveSharedSecret": agree,
	}
}

// A server with roots that it cannot read does not start.
func TestAttestationRootsMustBeReadable(t *testing.T) {
	d := newDeployment(t, "")
	s := d.launch(t, "TRENT_ATTESTATION_ROOTS="+file(t, []byte("no PEM")))
	if err := s.ready(20 * time.Second); err == nil {
		t.Fatal("it started")
	}
	if log := string(d.logs(t)); !strings.Contains(log, "there is no certificate (PEM) in it") {
		t.Errorf("it ended with:\n%s", log)
	}
}
