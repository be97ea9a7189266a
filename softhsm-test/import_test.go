package softhsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/internal/testenv"
)

func externalKey(t testing.TB, c *kms.Client) *types.KeyMetadata {
	t.Helper()
	return must(c.CreateKey(context.Background(), &kms.CreateKeyInput{Origin: types.OriginTypeExternal}))(t).KeyMetadata
}

// wrapped follows the openssl commands of AWS's documentation, "Importing key
// material step 3".
func wrapped(t testing.TB, algorithm types.AlgorithmSpec, public, material []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	openssl := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(testenv.Program(t, "openssl"), args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	read := func(name string) []byte { return must(os.ReadFile(in(name)))(t) }
	oaep := func(from, to string) {
		t.Helper()
		openssl("pkeyutl", "-encrypt", "-in", in(from), "-out", in(to), "-inkey", in("WrappingPublicKey.bin"), "-keyform", "DER", "-pubin",
			"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha1", "-pkeyopt", "rsa_mgf1_md:sha1")
	}
	must(0, os.WriteFile(in("WrappingPublicKey.bin"), public, 0o600))(t)
	must(0, os.WriteFile(in("PlaintextKeyMaterial.bin"), material, 0o600))(t)
	if algorithm == types.AlgorithmSpecRsaesOaepSha1 {
		oaep("PlaintextKeyMaterial.bin", "EncryptedKeyMaterial.bin")
		return read("EncryptedKeyMaterial.bin")
	}
	openssl("rand", "-out", in("aes-key.bin"), "32")
	openssl("enc", "-id-aes256-wrap-pad", "-K", hex.EncodeToString(read("aes-key.bin")), "-iv", "A65959A6",
		"-in", in("PlaintextKeyMaterial.bin"), "-out", in("key-material-wrapped.bin"))
	oaep("aes-key.bin", "aes-key-wrapped.bin")
	return append(read("aes-key-wrapped.bin"), read("key-material-wrapped.bin")...)
}

// AWS's documented openssl procedure, in every variant that SoftHSM can unwrap
// inside.
func TestImportByOpenSSL(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	ctx := context.Background()
	for _, algorithm := range []types.AlgorithmSpec{types.AlgorithmSpecRsaesOaepSha1, types.AlgorithmSpecRsaAesKeyWrapSha1} {
		for _, spec := range []types.WrappingKeySpec{types.WrappingKeySpecRsa2048, types.WrappingKeySpecRsa3072, types.WrappingKeySpecRsa4096} {
			t.Run(string(algorithm)+"/"+string(spec), func(t *testing.T) {
				key := externalKey(t, c)
				material := make([]byte, 32)
				_, _ = rand.Read(material)
				p := must(c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: key.KeyId, WrappingAlgorithm: algorithm, WrappingKeySpec: spec}))(t)
				out := must(c.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{
					KeyId: key.KeyId, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrapped(t, algorithm, p.PublicKey, material),
					ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
				}))(t)
				if aws.ToString(out.KeyId) != *key.Arn || len(aws.ToString(out.KeyMaterialId)) != 64 {
					t.Errorf("answer %+v", out)
				}
				blob := encrypt(t, c, *key.KeyId, marker, nil)
				must(c.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: key.KeyId}))(t)
				_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
				wantError[*types.KMSInvalidStateException](t, err, "is pending import.")
				// The same material by a new wrapping key brings it back.
				p = must(c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: key.KeyId, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha1, WrappingKeySpec: types.WrappingKeySpecRsa2048}))(t)
				must(c.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{
					KeyId: key.KeyId, ImportToken: p.ImportToken, KeyMaterialId: out.KeyMaterialId,
					EncryptedKeyMaterial: wrapped(t, types.AlgorithmSpecRsaesOaepSha1, p.PublicKey, material),
					ExpirationModel:      types.ExpirationModelTypeKeyMaterialDoesNotExpire,
				}))(t)
				wantDecrypt(t, c, blob, marker, nil)
				for _, r := range d.records(t, "record->'resources'->0->>'ARN' = $1 AND record->>'eventName' IN ('ImportKeyMaterial', 'DeleteImportedKeyMaterial')", *key.Arn) {
					if !strings.Contains(string(r.ResponseElements), *key.Arn) || !strings.Contains(string(r.ResponseElements), *out.KeyMaterialId) {
						t.Errorf("%s is recorded with %s", r.EventName, r.ResponseElements)
					}
				}
				d.wantNoPlaintext(t, string(material))
			})
		}
	}
	d.wantChains(t)
}

// What only Trent's own memory could unwrap is refused, with the reason.
func TestImportRefusedOutsideTheHSM(t *testing.T) {
	c := shared(t).client(t)
	key := externalKey(t, c)
	for _, algorithm := range []types.AlgorithmSpec{types.AlgorithmSpecRsaesOaepSha256, types.AlgorithmSpecRsaAesKeyWrapSha256} {
		_, err := c.GetParametersForImport(context.Background(), &kms.GetParametersForImportInput{
			KeyId: key.KeyId, WrappingAlgorithm: algorithm, WrappingKeySpec: types.WrappingKeySpecRsa2048,
		})
		wantError[*types.UnsupportedOperationException](t, err, "CKM_RSA_PKCS_OAEP")
	}
}

// A kill on the way of an import leaves the key as it was, or imported.
func TestCrashInImport(t *testing.T) {
	d := newDeployment(t, "failpoint")
	s := d.serve(t)
	c := d.client(t)
	ctx := context.Background()
	key := externalKey(t, c)
	p := must(c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{
		KeyId: key.KeyId, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha1, WrappingKeySpec: types.WrappingKeySpecRsa2048,
	}))(t)
	in := &kms.ImportKeyMaterialInput{
		KeyId: key.KeyId, ImportToken: p.ImportToken,
		EncryptedKeyMaterial: wrapped(t, types.AlgorithmSpecRsaesOaepSha1, p.PublicKey, bytes.Repeat([]byte{7}, 32)),
		ExpirationModel:      types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	}
	must(0, s.stop())(t)
	for point, want := range map[string]types.KeyState{
		"change.before_commit": types.KeyStatePendingImport, "change.after_commit": types.KeyStateEnabled,
	} {
		if err := d.kills(t, point, func(c *kms.Client) error { _, err := c.ImportKeyMaterial(ctx, in); return err }); err == nil {
			t.Fatal("a dead server answered")
		}
		s := d.serve(t)
		c := d.client(t)
		if state := describe(t, c, *key.KeyId).KeyState; state != want {
			t.Errorf("killed at %s the key is %s", point, state)
		}
		if want == types.KeyStateEnabled {
			wantAllKeysWork(t, c)
			must(c.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: key.KeyId}))(t)
		}
		d.wantChains(t)
		must(0, s.stop())(t)
	}
}
