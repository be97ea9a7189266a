package softhsmtest

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestMACs(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	for spec, size := range map[types.KeySpec]int{
		types.KeySpecHmac224: 28, types.KeySpecHmac256: 32, types.KeySpecHmac384: 48, types.KeySpecHmac512: 64,
	} {
		t.Run(string(spec), func(t *testing.T) {
			key := kindOf(t, c, spec, macs)
			algorithm := key.MacAlgorithms[0]
			message := []byte(strings.Repeat(marker, 300))
			out := must(c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: key.KeyId, MacAlgorithm: algorithm, Message: message}))(t)
			again := must(c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: key.Arn, MacAlgorithm: algorithm, Message: message}))(t)
			if len(out.Mac) != size || !bytes.Equal(out.Mac, again.Mac) || aws.ToString(out.KeyId) != *key.Arn || out.MacAlgorithm != algorithm {
				t.Fatalf("GenerateMac answered %d bytes for %s, %s", len(out.Mac), aws.ToString(out.KeyId), out.MacAlgorithm)
			}
			verify := func(key *types.KeyMetadata, message, mac []byte) error {
				out, err := c.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: key.KeyId, MacAlgorithm: algorithm, Message: message, Mac: mac})
				if err == nil && (!out.MacValid || aws.ToString(out.KeyId) != *key.Arn || out.MacAlgorithm != algorithm) {
					t.Errorf("VerifyMac answered %+v", out)
				}
				return err
			}
			if err := verify(key, message, out.Mac); err != nil {
				t.Error(err)
			}
			flipped := bytes.Clone(out.Mac)
			flipped[0] ^= 1
			for _, bad := range [][]byte{flipped, out.Mac[:size-1], append(bytes.Clone(out.Mac), 0), {0}} {
				wantError[*types.KMSInvalidMacException](t, verify(key, message, bad), "")
			}
			wantError[*types.KMSInvalidMacException](t, verify(key, message[1:], out.Mac), "")
			wantError[*types.KMSInvalidMacException](t, verify(newKey(t, c, spec, macs), message, out.Mac), "")
		})
	}
}

func TestMACRefusals(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	key, signing := kindOf(t, c, types.KeySpecHmac256, macs), kindOf(t, c, types.KeySpecEccNistP256, signs)
	for name, bad := range map[string]struct {
		key        *types.KeyMetadata
		algorithm  types.MacAlgorithmSpec
		message    []byte
		code, text string
	}{
		"another spec's algorithm": {key, "HMAC_SHA_512", []byte("m"), "InvalidKeyUsageException", "Algorithm HMAC_SHA_512 is incompatible with key spec HMAC_256."},
		"signing key":              {signing, "HMAC_SHA_256", []byte("m"), "InvalidKeyUsageException", *signing.Arn + " key usage is SIGN_VERIFY which is not valid for "},
		"empty":                    {key, "HMAC_SHA_256", []byte{}, "ValidationException", "'message' failed to satisfy constraint"},
		"too long":                 {key, "HMAC_SHA_256", make([]byte, 4097), "ValidationException", "'message' failed to satisfy constraint"},
		"no such algorithm":        {key, "HMAC_MD5", []byte("m"), "ValidationException", "'macAlgorithm' failed to satisfy constraint"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.GenerateMac(context.Background(), &kms.GenerateMacInput{KeyId: bad.key.KeyId, MacAlgorithm: bad.algorithm, Message: bad.message})
			wantCode(t, err, bad.code, bad.text)
			_, err = c.VerifyMac(context.Background(), &kms.VerifyMacInput{KeyId: bad.key.KeyId, MacAlgorithm: bad.algorithm, Message: bad.message, Mac: []byte("x")})
			wantCode(t, err, bad.code, bad.text)
		})
	}
}

// KMSInvalidMacException and KMSInvalidSignatureException have no text.
func TestRefusalsWithoutText(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	mac, sign := *kindOf(t, c, types.KeySpecHmac256, macs).KeyId, *kindOf(t, c, types.KeySpecEccNistP256, signs).KeyId
	agree := *kindOf(t, c, types.KeySpecEccNistP256, agrees).KeyId
	for operation, r := range map[string]struct{ body, code string }{
		"VerifyMac":          {`{"KeyId":"` + mac + `","MacAlgorithm":"HMAC_SHA_256","Message":"eA==","Mac":"eA=="}`, "KMSInvalidMacException"},
		"Verify":             {`{"KeyId":"` + sign + `","SigningAlgorithm":"ECDSA_SHA_256","Message":"eA==","Signature":"eA=="}`, "KMSInvalidSignatureException"},
		"DeriveSharedSecret": {`{"KeyId":"` + agree + `","KeyAgreementAlgorithm":"ECDH","PublicKey":"eA=="}`, "ValidationException"},
	} {
		a := d.raw(t, request{operation: operation, body: []byte(r.body)})
		a.want(t, 400, r.code)
		if a.hasText {
			t.Errorf("%s has a text: %s", r.code, a.body)
		}
		d.wantRecord(t, a.requestID, operation, r.code)
	}
}
