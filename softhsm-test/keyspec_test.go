package softhsmtest

import (
	"bytes"
	"context"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/internal/testenv"
)

const (
	encrypts = types.KeyUsageTypeEncryptDecrypt
	signs    = types.KeyUsageTypeSignVerify
	macs     = types.KeyUsageTypeGenerateVerifyMac
	agrees   = types.KeyUsageTypeKeyAgreement
	kem      = types.KeyUsageTypeEncapsulateDecapsulate
)

// keyKinds are the specs and usages that SoftHSM can do, with their
// algorithms.
var keyKinds = []struct {
	spec       types.KeySpec
	usage      types.KeyUsageType
	algorithms string
}{
	{types.KeySpecHmac224, macs, "HMAC_SHA_224"},
	{types.KeySpecHmac256, macs, "HMAC_SHA_256"},
	{types.KeySpecHmac384, macs, "HMAC_SHA_384"},
	{types.KeySpecHmac512, macs, "HMAC_SHA_512"},
	{types.KeySpecRsa2048, encrypts, "RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256"},
	{types.KeySpecRsa2048, signs, rsaSigning},
	{types.KeySpecRsa3072, encrypts, "RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256"},
	{types.KeySpecRsa3072, signs, rsaSigning},
	{types.KeySpecRsa4096, encrypts, "RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256"},
	{types.KeySpecRsa4096, signs, rsaSigning},
	{types.KeySpecEccNistP256, signs, "ECDSA_SHA_256"},
	{types.KeySpecEccNistP256, agrees, "ECDH"},
	{types.KeySpecEccNistP384, signs, "ECDSA_SHA_384"},
	{types.KeySpecEccNistP384, agrees, "ECDH"},
	{types.KeySpecEccNistP521, signs, "ECDSA_SHA_512"},
	{types.KeySpecEccNistP521, agrees, "ECDH"},
	{types.KeySpecEccSecgP256k1, signs, "ECDSA_SHA_256"},
}

const rsaSigning = "RSASSA_PKCS1_V1_5_SHA_256 RSASSA_PKCS1_V1_5_SHA_384 RSASSA_PKCS1_V1_5_SHA_512 " +
	"RSASSA_PSS_SHA_256 RSASSA_PSS_SHA_384 RSASSA_PSS_SHA_512"

type keyKind struct {
	spec  types.KeySpec
	usage types.KeyUsageType
}

var (
	kindsMu sync.Mutex
	kinds   = map[keyKind]*types.KeyMetadata{} // guarded by kindsMu
)

// kindOf is an enabled key of the shared deployment that no test changes: RSA
// keys take long to make.
func kindOf(t testing.TB, c *kms.Client, spec types.KeySpec, usage types.KeyUsageType) *types.KeyMetadata {
	t.Helper()
	kindsMu.Lock()
	defer kindsMu.Unlock()
	kind := keyKind{spec, usage}
	if kinds[kind] == nil {
		kinds[kind] = newKey(t, c, spec, usage)
	}
	return kinds[kind]
}

func newKey(t testing.TB, c *kms.Client, spec types.KeySpec, usage types.KeyUsageType) *types.KeyMetadata {
	t.Helper()
	return must(c.CreateKey(context.Background(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage}))(t).KeyMetadata
}

// algorithmsOf demands that metadata lists algorithms for its usage only.
func algorithmsOf(t testing.TB, m *types.KeyMetadata) string {
	t.Helper()
	lists := map[types.KeyUsageType]string{}
	put := func(usage types.KeyUsageType, list []string) {
		if list != nil {
			lists[usage] = strings.Join(list, " ")
		}
	}
	put(encrypts, texts(m.EncryptionAlgorithms))
	put(signs, texts(m.SigningAlgorithms))
	put(macs, texts(m.MacAlgorithms))
	put(agrees, texts(m.KeyAgreementAlgorithms))
	put(kem, texts(m.EncapsulationAlgorithms))
	if len(lists) != 1 {
		t.Errorf("%s lists algorithms of %d usages", m.KeySpec, len(lists))
	}
	return lists[m.KeyUsage]
}

func texts[S ~string](list []S) (all []string) {
	for _, s := range list {
		all = append(all, string(s))
	}
	return all
}

func TestKeySpecs(t *testing.T) {
	c := shared(t).client(t)
	for _, kind := range keyKinds {
		t.Run(string(kind.spec)+"/"+string(kind.usage), func(t *testing.T) {
			made := kindOf(t, c, kind.spec, kind.usage)
			seen := describe(t, c, *made.KeyId)
			for _, m := range []*types.KeyMetadata{made, seen} {
				if m.KeySpec != kind.spec || m.KeyUsage != kind.usage || string(m.CustomerMasterKeySpec) != string(kind.spec) ||
					!m.Enabled || m.Origin != types.OriginTypeAwsKms || m.CurrentKeyMaterialId != nil {
					t.Errorf("metadata %+v", m)
				}
				if got := algorithmsOf(t, m); got != kind.algorithms {
					t.Errorf("algorithms %q, want %q", got, kind.algorithms)
				}
			}
		})
	}
}

func TestGetPublicKey(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	for _, kind := range keyKinds {
		t.Run(string(kind.spec)+"/"+string(kind.usage), func(t *testing.T) {
			key := kindOf(t, c, kind.spec, kind.usage)
			out, err := c.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: key.KeyId})
			if kind.usage == macs {
				wantError[*types.UnsupportedOperationException](t, err, *key.Arn)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if aws.ToString(out.KeyId) != *key.Arn || out.KeySpec != kind.spec || out.KeyUsage != kind.usage ||
				string(out.CustomerMasterKeySpec) != string(kind.spec) {
				t.Errorf("answer %+v", out)
			}
			listed := slices.Concat(texts(out.EncryptionAlgorithms), texts(out.SigningAlgorithms), texts(out.KeyAgreementAlgorithms))
			if strings.Join(listed, " ") != kind.algorithms {
				t.Errorf("algorithms %q, want %q", listed, kind.algorithms)
			}
			if kind.spec != types.KeySpecEccSecgP256k1 { // not a curve of Go's
				if _, err := x509.ParsePKIXPublicKey(out.PublicKey); err != nil {
					t.Error(err)
				}
			}
			openssl(t, out.PublicKey, "pkey", "-pubin", "-inform", "DER", "-noout", "-text_pub")
		})
	}
	_, err := c.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: createKey(t, c).KeyId})
	wantError[*types.UnsupportedOperationException](t, err, "SYMMETRIC_DEFAULT")
}

// openssl runs OpenSSL's command line and returns its standard output.
func openssl(t testing.TB, stdin []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(testenv.Program(t, "openssl"), args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, &faults)
	}
	return out
}

// file writes what openssl takes by name only.
func file(t testing.TB, content []byte) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	return filepath.Clean(f.Name())
}

// What a device lacks is refused by the mechanism's name.
func TestSpecsThatTheDeviceLacks(t *testing.T) {
	c := shared(t).client(t)
	for _, kind := range []struct {
		spec  types.KeySpec
		usage types.KeyUsageType
		text  string
	}{
		{types.KeySpecEccNistEdwards25519, signs, "CKM_"},
		{types.KeySpecMlDsa44, signs, "CKM_ML_DSA"},
		{types.KeySpecMlDsa65, signs, "CKM_ML_DSA"},
		{types.KeySpecMlDsa87, signs, "CKM_ML_DSA"},
		{types.KeySpecMlKem512, kem, "CKM_ML_KEM"},
		{types.KeySpecMlKem768, kem, "CKM_ML_KEM"},
		{types.KeySpecMlKem1024, kem, "CKM_ML_KEM"},
	} {
		t.Run(string(kind.spec), func(t *testing.T) {
			_, err := c.CreateKey(context.Background(), &kms.CreateKeyInput{KeySpec: kind.spec, KeyUsage: kind.usage})
			wantError[*types.UnsupportedOperationException](t, err, kind.text)
			wantError[*types.UnsupportedOperationException](t, err, string(kind.spec))
		})
	}
	_, err := c.CreateKey(context.Background(), &kms.CreateKeyInput{KeySpec: types.KeySpecSm2, KeyUsage: signs})
	wantError[*types.UnsupportedOperationException](t, err, "SM2")
}

// Every usage that a spec has not is refused, and every spec but one wants
// its usage said.
func TestUsagesThatSpecsHaveNot(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	allowed := map[keyKind]bool{{types.KeySpecSymmetricDefault, encrypts}: true, {types.KeySpecEccNistEdwards25519, signs}: true}
	for _, kind := range keyKinds {
		allowed[keyKind{kind.spec, kind.usage}] = true
	}
	for _, spec := range types.KeySpec("").Values() {
		for _, usage := range types.KeyUsageType("").Values() {
			pq := strings.HasPrefix(string(spec), "ML_DSA") && usage == signs || strings.HasPrefix(string(spec), "ML_KEM") && usage == kem
			if spec == types.KeySpecSm2 || pq || allowed[keyKind{spec, usage}] {
				continue
			}
			_, err := c.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage})
			wantCode(t, err, "ValidationException", "KeyUsage "+string(usage)+" is not compatible with KeySpec "+string(spec))
		}
		if spec != types.KeySpecSymmetricDefault {
			_, err := c.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: spec})
			wantCode(t, err, "ValidationException", "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")
		}
	}
}

func TestDeprecatedKeySpec(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	made := must(c.CreateKey(ctx, &kms.CreateKeyInput{CustomerMasterKeySpec: types.CustomerMasterKeySpecEccNistP256, KeyUsage: signs}))(t)
	if made.KeyMetadata.KeySpec != types.KeySpecEccNistP256 {
		t.Errorf("spec %s", made.KeyMetadata.KeySpec)
	}
	_, err := c.CreateKey(ctx, &kms.CreateKeyInput{
		CustomerMasterKeySpec: types.CustomerMasterKeySpecEccNistP256, KeySpec: types.KeySpecEccNistP384, KeyUsage: signs})
	wantCode(t, err, "ValidationException", "You cannot specify KeySpec and CustomerMasterKeySpec in the same request.")
}

// An alias moves between keys of one type and usage, whatever their specs.
func TestUpdateAliasTypes(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	from := kindOf(t, c, types.KeySpecEccNistP256, signs)
	name := "alias/types-" + *from.KeyId
	if err := createAlias(c, name, *from.KeyId); err != nil {
		t.Fatal(err)
	}
	for _, to := range []struct {
		key *types.KeyMetadata
		ok  bool
	}{
		{kindOf(t, c, types.KeySpecEccNistP384, signs), true},
		{kindOf(t, c, types.KeySpecRsa2048, signs), true},
		{kindOf(t, c, types.KeySpecRsa2048, encrypts), false},
		{kindOf(t, c, types.KeySpecEccNistP256, agrees), false},
		{kindOf(t, c, types.KeySpecHmac256, macs), false},
		{createKey(t, c), false},
	} {
		_, err := c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &name, TargetKeyId: to.key.KeyId})
		if to.ok && err != nil {
			t.Errorf("to %s %s: %v", to.key.KeySpec, to.key.KeyUsage, err)
		}
		if !to.ok {
			wantCode(t, err, "ValidationException", "cannot be moved")
		}
	}
	hmac := "alias/types-" + *kindOf(t, c, types.KeySpecHmac256, macs).KeyId
	if err := createAlias(c, hmac, *kindOf(t, c, types.KeySpecHmac256, macs).KeyId); err != nil {
		t.Fatal(err)
	}
	must(c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &hmac, TargetKeyId: kindOf(t, c, types.KeySpecHmac512, macs).KeyId}))(t)
}
