package softhsmtest

import (
	"bytes"
	"context"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/envelope"
	"github.com/trent-kms/trent/internal/ivshim"
	"github.com/trent-kms/trent/internal/testenv"
)

// TestIVSources: every call that encrypts works with IVs of each source, and
// what one source has made stays good under the next.
func TestIVSources(t *testing.T) {
	d := prepare(t, testenv.Postgres(t))
	d.endWith(t)
	softHSM := d.module
	written, appended := ivshim.New(t, softHSM, ivshim.Written), ivshim.New(t, softHSM, ivshim.Appended, ivshim.ValueLength)
	d.module = appended
	d.initialise(t)
	var key *types.KeyMetadata
	var blobs [][]byte
	for _, step := range []struct {
		name, module, source string
		ivLength             int
	}{
		{"like Luna", appended, "auto", 16},
		{"like Luna, as told", appended, "mechanism", 16},
		{"like CloudHSM", written, "auto", 12},
		{"like CloudHSM, as told", written, "mechanism", 12},
		{"the HSM's generator", softHSM, "hsm", 12},
		{"this process", softHSM, "process", 12},
	} {
		t.Run(step.name, func(t *testing.T) {
			d.stopAll()
			d.module = step.module
			d.serve(t, "TRENT_HSM_IV_SOURCE="+step.source)
			c := d.client(t)
			if key == nil {
				key = createKey(t, c)
			}
			for _, blob := range sealEverywhere(t, c, *key.KeyId) {
				b := must(envelope.Parse(blob))(t)
				if len(b.IV) != step.ivLength || bytes.Equal(b.IV, make([]byte, len(b.IV))) {
					t.Errorf("the IV is %x, want %d bytes", b.IV, step.ivLength)
				}
			}
			blobs = append(blobs, encrypt(t, c, *key.KeyId, marker, ivContext))
			for i, blob := range blobs {
				wantDecrypt(t, c, blob, marker, ivContext)
				for at := range blob {
					altered := bytes.Clone(blob)
					altered[at] ^= 1
					if _, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: altered, EncryptionContext: ivContext}); err == nil {
						t.Errorf("blob %d opens with byte %d changed", i, at)
					}
				}
			}
		})
	}
}

var ivContext = map[string]string{"tenant": "a"}

// sealEverywhere has every operation that makes blobs of a symmetric key make
// one, checks that it opens, and returns them.
func sealEverywhere(t *testing.T, c *kms.Client, id string) [][]byte {
	t.Helper()
	ctx := context.Background()
	sealed := encrypt(t, c, id, marker, ivContext)
	wantDecrypt(t, c, sealed, marker, ivContext)
	again := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: sealed, SourceEncryptionContext: ivContext, DestinationKeyId: &id,
	}))(t)
	wantDecrypt(t, c, again.CiphertextBlob, marker, nil)
	data := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &id, KeySpec: types.DataKeySpecAes256}))(t)
	wantDecrypt(t, c, data.CiphertextBlob, string(data.Plaintext), nil)
	bare := must(c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: types.DataKeySpecAes128}))(t)
	if opened := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: bare.CiphertextBlob}))(t); len(opened.Plaintext) != 16 {
		t.Errorf("a data key of %d bytes", len(opened.Plaintext))
	}
	pair := must(c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: types.DataKeyPairSpecRsa2048}))(t)
	wantDecrypt(t, c, pair.PrivateKeyCiphertextBlob, string(pair.PrivateKeyPlaintext), nil)
	most := encrypt(t, c, id, string(bytes.Repeat([]byte{'x'}, 4096)), nil)
	return [][]byte{sealed, again.CiphertextBlob, data.CiphertextBlob, bare.CiphertextBlob, pair.PrivateKeyCiphertextBlob, most}
}
