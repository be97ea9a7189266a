package kms

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // #nosec G505 -- AWS's wrapping algorithm
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func externalKey(t *testing.T, f *fleet, s *Service) string {
	t.Helper()
	out, err := do(f, s, "CreateKey", (*Service).CreateKey, &awskms.CreateKeyInput{Origin: types.OriginTypeExternal})
	if err != nil {
		t.Fatal(err)
	}
	m := out.KeyMetadata
	if m.KeyState != types.KeyStatePendingImport || m.Enabled || m.Origin != types.OriginTypeExternal ||
		m.CurrentKeyMaterialId != nil || m.ExpirationModel != "" || m.ValidTo != nil {
		t.Errorf("new key: %+v", m)
	}
	return *m.KeyId
}

// A parcel is what one needs to import.
type parcel struct {
	token  []byte
	public *rsa.PublicKey
}

func getParcel(t *testing.T, f *fleet, s *Service, id string) parcel {
	t.Helper()
	out, err := do(f, s, "GetParametersForImport", (*Service).GetParametersForImport, &awskms.GetParametersForImportInput{
		KeyId: &id, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha1, WrappingKeySpec: types.WrappingKeySpecRsa2048,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !out.ParametersValidTo.Equal(f.now().Add(24 * time.Hour)) {
		t.Errorf("valid to %v", out.ParametersValidTo)
	}
	public, err := x509.ParsePKIXPublicKey(out.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return parcel{out.ImportToken, public.(*rsa.PublicKey)}
}

func (p parcel) wrap(t *testing.T, material []byte) []byte {
	t.Helper()
	wrapped, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, p.public, material, nil)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

// importKey imports material for good, unless edit says otherwise.
func (p parcel) importKey(t *testing.T, f *fleet, s *Service, id string, material []byte, edit func(*awskms.ImportKeyMaterialInput)) (string, error) {
	t.Helper()
	in := &awskms.ImportKeyMaterialInput{
		KeyId: &id, ImportToken: p.token, EncryptedKeyMaterial: p.wrap(t, material),
		ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	}
	if edit != nil {
		edit(in)
	}
	out, err := do(f, s, "ImportKeyMaterial", (*Service).ImportKeyMaterial, in)
	if err != nil {
		return "", err
	}
	return *out.KeyMaterialId, nil
}

func fixed(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func metadata(t *testing.T, f *fleet, s *Service, id string) *types.KeyMetadata {
	t.Helper()
	out, err := do(f, s, "DescribeKey", (*Service).DescribeKey, &awskms.DescribeKeyInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	return out.KeyMetadata
}

func wantState(t *testing.T, f *fleet, s *Service, id string, want types.KeyState) {
	t.Helper()
	if m := metadata(t, f, s, id); m.KeyState != want || m.Enabled != (want == types.KeyStateEnabled) {
		t.Errorf("the key is %s, want %s", m.KeyState, want)
	}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if err == nil || APIError(err).ErrorCode() != code {
		t.Errorf("%v, want %s", err, code)
	}
}

func opens(f *fleet, s *Service, blob []byte) error {
	_, err := do(f, s, "Decrypt", (*Service).Decrypt, &awskms.DecryptInput{CiphertextBlob: blob})
	return err
}

func deleteMaterial(f *fleet, s *Service, id string, material *string) error {
	_, err := do(f, s, "DeleteImportedKeyMaterial", (*Service).DeleteImportedKeyMaterial,
		&awskms.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: material})
	return err
}

// The life of imported material: in, used, deleted, refused, in again.
func TestImport(t *testing.T) {
	f := newFleet(t)
	s, other := f.host(t, "a"), f.host(t, "b")
	id := externalKey(t, f, s)
	_, err := do(f, s, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantCode(t, err, "KMSInvalidStateException")
	if err := deleteMaterial(f, s, id, nil); err != nil {
		t.Errorf("deleting nothing: %v", err)
	}
	p := getParcel(t, f, s, id)
	first, err := p.importKey(t, f, s, id, fixed(1), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, f, s, id, types.KeyStateEnabled)
	if m := metadata(t, f, s, id); *m.CurrentKeyMaterialId != first || m.ExpirationModel != types.ExpirationModelTypeKeyMaterialDoesNotExpire {
		t.Errorf("%+v", m)
	}
	blob := seal(t, f, other, id, "x")
	if err := opens(f, s, blob); err != nil {
		t.Fatal(err)
	}
	if err := deleteMaterial(f, s, id, nil); err != nil {
		t.Fatal(err)
	}
	wantState(t, f, s, id, types.KeyStatePendingImport)
	wantCode(t, opens(f, s, blob), "KMSInvalidStateException")
	wantCode(t, opens(f, other, blob), "KMSInvalidStateException")
	_, err = p.importKey(t, f, s, id, fixed(2), nil)
	wantCode(t, err, "IncorrectKeyMaterialException")
	wantState(t, f, s, id, types.KeyStatePendingImport)
	again, err := getParcel(t, f, s, id).importKey(t, f, s, id, fixed(1), func(in *awskms.ImportKeyMaterialInput) { in.KeyMaterialId = &first })
	if err != nil || again != first {
		t.Fatalf("the same material again: %s, %v", again, err)
	}
	for _, s := range []*Service{s, other} {
		if err := opens(f, s, blob); err != nil {
			t.Errorf("after the same material was imported again: %v", err)
		}
	}
	two := externalKey(t, f, s)
	if elsewhere, err := getParcel(t, f, s, two).importKey(t, f, s, two, fixed(1), nil); err != nil || elsewhere == first {
		t.Errorf("the same material in another key has id %s, %v", elsewhere, err)
	}
}

// Material expires in the second that was said, sweep or no sweep, and the
// sweep deletes it.
func TestImportedMaterialExpires(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := externalKey(t, f, s)
	p := getParcel(t, f, s, id)
	until := func(validTo time.Time) func(*awskms.ImportKeyMaterialInput) {
		return func(in *awskms.ImportKeyMaterialInput) { in.ExpirationModel, in.ValidTo = "", &validTo }
	}
	for name, edit := range map[string]func(*awskms.ImportKeyMaterialInput){
		"no date": func(in *awskms.ImportKeyMaterialInput) { in.ExpirationModel = "" },
		"past":    until(f.now()),
		"too far": until(f.now().Add(365*day + time.Second)),
		"both":    func(in *awskms.ImportKeyMaterialInput) { in.ValidTo = aws.Time(f.now().Add(day)) },
		"id and new": func(in *awskms.ImportKeyMaterialInput) {
			in.ImportType, in.KeyMaterialId = types.ImportTypeNewKeyMaterial, aws.String(fmt.Sprintf("%064d", 0))
		},
	} {
		if _, err := p.importKey(t, f, s, id, fixed(1), edit); err == nil || APIError(err).ErrorCode() != "ValidationException" {
			t.Errorf("%s: %v", name, err)
		}
	}
	end := f.now().Add(2 * time.Hour)
	material, err := p.importKey(t, f, s, id, fixed(1), until(end))
	if err != nil {
		t.Fatal(err)
	}
	if m := metadata(t, f, s, id); m.ExpirationModel != types.ExpirationModelTypeKeyMaterialExpires || !m.ValidTo.Equal(end) {
		t.Errorf("%+v", m)
	}
	blob := seal(t, f, s, id, "x")
	f.ahead.Add(int64(2*time.Hour - time.Second))
	if err := opens(f, s, blob); err != nil {
		t.Errorf("a second before: %v", err)
	}
	f.ahead.Add(int64(time.Second))
	wantCode(t, opens(f, s, blob), "KMSInvalidStateException")
	wantState(t, f, s, id, types.KeyStatePendingImport)
	for range 2 {
		if err := s.expireDue(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var left, events int
	if err := s.db.Pool().QueryRow(t.Context(), `SELECT (SELECT count(*) FROM backing_keys WHERE ekt <> ''), (SELECT count(*) FROM audit_records
		WHERE record->>'eventName' = 'DeleteExpiredKeyMaterial' AND record->'serviceEventDetails'->>'keyMaterialId' = $1)`, material).Scan(&left, &events); err != nil || left != 0 || events != 1 {
		t.Errorf("%d EKTs left, %d events, %v", left, events, err)
	}
	wantState(t, f, s, id, types.KeyStatePendingImport)
	if _, err := p.importKey(t, f, s, id, fixed(1), nil); err != nil {
		t.Fatal(err)
	}
	if err := opens(f, s, blob); err != nil {
		t.Errorf("imported again: %v", err)
	}
}

// New material awaits a rotation on demand, then encrypts; the key needs all
// its materials.
func TestImportedMaterialRotates(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := externalKey(t, f, s)
	rotate := func() error {
		_, err := do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id})
		return err
	}
	p := getParcel(t, f, s, id)
	var ids []string
	var blobs [][]byte
	add := func(b byte, kind types.ImportType) error {
		material, err := p.importKey(t, f, s, id, fixed(b), func(in *awskms.ImportKeyMaterialInput) {
			in.ImportType, in.KeyMaterialDescription = kind, aws.String(fmt.Sprint("from safe ", b))
		})
		if err == nil {
			ids = append(ids, material)
		}
		return err
	}
	if err := add(1, ""); err != nil {
		t.Fatal(err)
	}
	blobs = append(blobs, seal(t, f, s, id, "text 0"))
	wantCode(t, rotate(), "KMSInvalidStateException")
	wantCode(t, add(2, ""), "IncorrectKeyMaterialException") // not new
	if err := add(2, types.ImportTypeNewKeyMaterial); err != nil {
		t.Fatal(err)
	}
	wantCode(t, add(3, types.ImportTypeNewKeyMaterial), "KMSInvalidStateException")
	wantCode(t, add(1, types.ImportTypeNewKeyMaterial), "IncorrectKeyMaterialException")
	if m := metadata(t, f, s, id); *m.CurrentKeyMaterialId != ids[0] {
		t.Error("pending material is current")
	}
	// Pending material is not the key's for good.
	if err := deleteMaterial(f, s, id, &ids[1]); err != nil {
		t.Fatal(err)
	}
	wantState(t, f, s, id, types.KeyStateEnabled)
	ids = ids[:1]
	if err := add(3, types.ImportTypeNewKeyMaterial); err != nil {
		t.Fatal(err)
	}
	if all := materials(t, f, s, id); len(all) != 2 || all[1].KeyMaterialState != types.KeyMaterialStatePendingRotation ||
		all[1].RotationDate != nil || all[1].ImportState != types.ImportStateImported || *all[1].KeyMaterialDescription != "from safe 3" {
		t.Errorf("%+v", all)
	}
	if err := rotate(); err != nil {
		t.Fatal(err)
	}
	blobs = append(blobs, seal(t, f, s, id, "text 1"))
	wantOpens(t, f, s, blobs)
	wantOpens(t, f, f.host(t, "b"), blobs)
	if all := materials(t, f, s, id); all[0].KeyMaterialState != types.KeyMaterialStateNonCurrent ||
		all[1].KeyMaterialState != types.KeyMaterialStateCurrent || all[1].RotationType != types.RotationTypeOnDemand {
		t.Errorf("%+v", all)
	}
	if events := rotateEvents(t, s, id); len(events) != 1 || events[0]["keyOrigin"] != "EXTERNAL" || events[0]["currentKeyMaterialId"] != ids[1] {
		t.Errorf("%v", events)
	}
	if err := deleteMaterial(f, s, id, &ids[0]); err != nil {
		t.Fatal(err)
	}
	wantState(t, f, s, id, types.KeyStatePendingImport)
	wantCode(t, opens(f, s, blobs[1]), "KMSInvalidStateException")
	if all := materials(t, f, s, id); all[0].ImportState != types.ImportStatePendingImport || all[0].ExpirationModel != "" {
		t.Errorf("%+v", all[0])
	}
	if err := add(1, ""); err != nil {
		t.Fatal(err)
	}
	wantState(t, f, s, id, types.KeyStateEnabled)
	wantOpens(t, f, s, blobs)
	_, err := do(f, s, "EnableKeyRotation", (*Service).EnableKeyRotation, &awskms.EnableKeyRotationInput{KeyId: &id})
	wantCode(t, err, "UnsupportedOperationException")
}

// What must not be imported is refused with AWS's error, and changes nothing.
func TestImportRefusals(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id, two, own := externalKey(t, f, s), externalKey(t, f, s), createKey(t, f, s)
	p := getParcel(t, f, s, id)
	flipped := bytes.Clone(p.token)
	flipped[len(flipped)-3] ^= 1
	for name, row := range map[string]struct {
		edit func(*awskms.ImportKeyMaterialInput)
		code string
	}{
		"altered token": {func(in *awskms.ImportKeyMaterialInput) { in.ImportToken = flipped }, "InvalidImportTokenException"},
		"no token":      {func(in *awskms.ImportKeyMaterialInput) { in.ImportToken = []byte{1} }, "InvalidImportTokenException"},
		"generation": {func(in *awskms.ImportKeyMaterialInput) {
			in.ImportToken = append([]byte{1, 9, 9, 9, 9}, p.token[5:]...)
		}, "InvalidImportTokenException"},
		"other key":       {func(in *awskms.ImportKeyMaterialInput) { in.KeyId = &two }, "InvalidImportTokenException"},
		"not external":    {func(in *awskms.ImportKeyMaterialInput) { in.KeyId = &own }, "UnsupportedOperationException"},
		"bad wrapping":    {func(in *awskms.ImportKeyMaterialInput) { in.EncryptedKeyMaterial[7] ^= 1 }, "InvalidCiphertextException"},
		"short wrapping":  {func(in *awskms.ImportKeyMaterialInput) { in.EncryptedKeyMaterial = []byte("x") }, "InvalidCiphertextException"},
		"16 bytes":        {func(in *awskms.ImportKeyMaterialInput) { in.EncryptedKeyMaterial = p.wrap(t, fixed(1)[:16]) }, "IncorrectKeyMaterialException"},
		"existing, first": {func(in *awskms.ImportKeyMaterialInput) { in.ImportType = types.ImportTypeExistingKeyMaterial }, "IncorrectKeyMaterialException"},
	} {
		if _, err := p.importKey(t, f, s, id, fixed(1), row.edit); err == nil || APIError(err).ErrorCode() != row.code {
			t.Errorf("%s: %v, want %s", name, err, row.code)
		}
	}
	for _, algorithm := range []types.AlgorithmSpec{types.AlgorithmSpecRsaesOaepSha256, types.AlgorithmSpecRsaAesKeyWrapSha256, types.AlgorithmSpecRsaesPkcs1V15} {
		_, err := do(f, s, "GetParametersForImport", (*Service).GetParametersForImport, &awskms.GetParametersForImportInput{
			KeyId: &id, WrappingAlgorithm: algorithm, WrappingKeySpec: types.WrappingKeySpecRsa2048,
		})
		var unsupported *types.UnsupportedOperationException
		if !errors.As(err, &unsupported) || unsupported.ErrorMessage() == "" {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
	f.pass(1)
	_, err := p.importKey(t, f, s, id, fixed(1), nil)
	wantCode(t, err, "ExpiredImportTokenException")
	wantState(t, f, s, id, types.KeyStatePendingImport)
	if n := len(materials(t, f, s, id)); n != 0 {
		t.Errorf("%d materials", n)
	}
}

// A key whose deletion is cancelled is Disabled, or pending import if its
// material went meanwhile.
func TestImportAndDeletion(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := externalKey(t, f, s)
	if _, err := getParcel(t, f, s, id).importKey(t, f, s, id, fixed(1), nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []types.KeyState{types.KeyStateDisabled, types.KeyStatePendingImport} {
		if _, err := do(f, s, "ScheduleKeyDeletion", (*Service).ScheduleKeyDeletion, &awskms.ScheduleKeyDeletionInput{KeyId: &id}); err != nil {
			t.Fatal(err)
		}
		if want == types.KeyStatePendingImport {
			if err := deleteMaterial(f, s, id, nil); err != nil {
				t.Fatal(err)
			}
			wantState(t, f, s, id, types.KeyStatePendingDeletion)
		}
		if _, err := do(f, s, "CancelKeyDeletion", (*Service).CancelKeyDeletion, &awskms.CancelKeyDeletionInput{KeyId: &id}); err != nil {
			t.Fatal(err)
		}
		wantState(t, f, s, id, want)
	}
}

// A row of deleted material, put back from a copy of the database, is not
// used again.
func TestDeletedMaterialPutBack(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := externalKey(t, f, s)
	if _, err := getParcel(t, f, s, id).importKey(t, f, s, id, fixed(1), nil); err != nil {
		t.Fatal(err)
	}
	exec := func(sql string) {
		t.Helper()
		if _, err := s.db.Pool().Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TABLE copied AS SELECT * FROM backing_keys")
	if err := deleteMaterial(f, s, id, nil); err != nil {
		t.Fatal(err)
	}
	exec("UPDATE backing_keys b SET version = c.version, ekt = c.ekt, expires = c.expires, mac = c.mac FROM copied c WHERE c.id = b.id")
	_, err := do(f, f.host(t, "b"), "DescribeKey", (*Service).DescribeKey, &awskms.DescribeKeyInput{KeyId: &id})
	wantCode(t, err, "KMSInternalException")
}
