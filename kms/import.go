package kms

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/uuid"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

const (
	// importParametersLife is how long a wrapping key and its token are valid.
	importParametersLife = 24 * time.Hour

	// maxMaterialLife bounds ValidTo.
	maxMaterialLife = 365 * day
)

// importParameters are what an import token says. The private half of the
// wrapping key is in it, wrapped under the domain key: nothing is stored, and
// a token that is forged, altered or another deployment's has no right MAC.
type importParameters struct {
	Account   string    `json:"account"`
	Region    string    `json:"region"`
	KeyID     string    `json:"keyId"`
	Algorithm string    `json:"algorithm"`
	ValidTo   time.Time `json:"validTo"`
	Wrapping  []byte    `json:"wrapping"` // EKT
}

// GetParametersForImport makes a wrapping key pair in the HSM and a token that
// says what it is for.
func (s *Service) GetParametersForImport(ctx context.Context, call *Call, in *awskms.GetParametersForImportInput) (*awskms.GetParametersForImportOutput, error) {
	if err := s.refresh(ctx, call); err != nil {
		return nil, err
	}
	k, err := s.authorizeKey(ctx, call, "kms:GetParametersForImport", *in.KeyId, keyOnly)
	if err != nil {
		return nil, err
	}
	if err := checkExternal(k); err != nil {
		return nil, err
	}
	algorithm := string(in.WrappingAlgorithm)
	if err := s.checkWrapping(k, in.WrappingAlgorithm, in.WrappingKeySpec); err != nil {
		return nil, err
	}
	wrapping, public, err := s.domain.GenerateWrappingKey(ctx, string(in.WrappingKeySpec))
	if err != nil {
		return nil, fromImport(err)
	}
	validTo := s.now().UTC().Add(importParametersLife).Truncate(time.Second)
	token, err := s.importToken(ctx, importParameters{k.Account, k.Region, k.ID, algorithm, validTo, wrapping})
	if err != nil {
		return nil, err
	}
	return &awskms.GetParametersForImportOutput{
		KeyId: aws.String(k.arn), PublicKey: public, ImportToken: token, ParametersValidTo: aws.Time(validTo),
	}, nil
}

func checkExternal(k *key) error {
	if k.Origin != string(types.OriginTypeExternal) {
		return unsupported("%s origin is %s which is not valid for this operation.", k.arn, k.Origin)
	}
	return nil
}

// checkWrapping refuses what AWS does not take, and what this HSM could not
// unwrap inside.
func (s *Service) checkWrapping(k *key, algorithm types.AlgorithmSpec, spec types.WrappingKeySpec) error {
	switch {
	case algorithm == types.AlgorithmSpecRsaesPkcs1V15:
		return unsupported("Wrapping algorithm %s is not supported any more.", algorithm)
	case algorithm == types.AlgorithmSpecSm2pke || spec == types.WrappingKeySpecSm2:
		return unsupported("SM2 is not supported in this Region.")
	case k.Spec == string(types.KeySpecEccNistP521) && spec == types.WrappingKeySpecRsa2048 &&
		(algorithm == types.AlgorithmSpecRsaesOaepSha1 || algorithm == types.AlgorithmSpecRsaesOaepSha256):
		return validation("Key material of %s is too long for wrapping key spec %s and algorithm %s.", k.Spec, spec, algorithm)
	}
	return fromImport(s.domain.SupportsImport(string(algorithm), k.Spec, hsmUses[k.Usage]))
}

// fromImport maps the HSM's refusals of an import.
func fromImport(err error) error {
	var lacks *hsm.UnsupportedError
	switch {
	case errors.As(err, &lacks):
		return unsupported("%s.", lacks.Error())
	case errors.Is(err, hsm.ErrMaterial):
		return &types.IncorrectKeyMaterialException{Message: aws.String("The key material is not of the key's spec.")}
	case errors.Is(err, hsm.ErrArgument):
		return validation("The wrapping algorithm cannot be used with a key of this spec.")
	}
	return err
}

// tokenVersion begins every import token:
//
//	token = tokenVersion 4OCTET(MAC generation) OCTET(length of mac) mac body
//
// where body is importParameters in JSON, and mac is of SHA-256 of
// "trent import token", the deployment's MAC key setting deployments apart.
const tokenVersion = 1

func tokenDigest(body []byte) []byte {
	sum := sha256.Sum256(append([]byte("trent import token\x00"), body...))
	return sum[:]
}

func (s *Service) importToken(ctx context.Context, p importParameters) ([]byte, error) {
	body, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding an import token: %w", err)
	}
	generation, mac, err := s.domain.Sum(ctx, tokenDigest(body))
	if err != nil {
		return nil, fmt.Errorf("sealing an import token: %w", err)
	}
	token := binary.BigEndian.AppendUint32([]byte{tokenVersion}, generation)
	token = append(append(token, byte(len(mac))), mac...)
	return append(token, body...), nil
}

// openToken verifies the import token of a request on k.
func (s *Service) openToken(ctx context.Context, k *key, token []byte) (importParameters, error) {
	var p importParameters
	invalid := &types.InvalidImportTokenException{Message: aws.String("The import token is not one of this key.")}
	if len(token) < 6 || token[0] != tokenVersion || len(token) < 6+int(token[5]) {
		return p, invalid
	}
	mac, body := token[6:6+int(token[5])], token[6+int(token[5]):]
	ok, err := s.domain.Verify(ctx, binary.BigEndian.Uint32(token[1:]), tokenDigest(body), mac)
	if err != nil {
		return p, fmt.Errorf("verifying an import token: %w", err)
	}
	if !ok {
		return p, invalid
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return p, fmt.Errorf("reading an import token of our own: %w", err)
	}
	if p.Account != k.Account || p.Region != k.Region || p.KeyID != k.ID {
		return p, invalid
	}
	if !s.now().Before(p.ValidTo) {
		return p, &types.ExpiredImportTokenException{Message: aws.String("The import token has expired. Get a new one.")}
	}
	return p, nil
}

// ImportKeyMaterial unwraps key material inside the HSM and ties it to a key:
// for good, unless it is new material that awaits its first rotation.
func (s *Service) ImportKeyMaterial(ctx context.Context, call *Call, in *awskms.ImportKeyMaterialInput) (*awskms.ImportKeyMaterialOutput, error) {
	out := &awskms.ImportKeyMaterialOutput{}
	err := s.change(ctx, call, func() error {
		k, err := s.authorizeKey(ctx, call, "kms:ImportKeyMaterial", *in.KeyId, keyOnly)
		if err != nil {
			return err
		}
		if err := checkExternal(k); err != nil {
			return err
		}
		material, err := s.unwrapMaterial(ctx, k, in)
		if err != nil {
			return err
		}
		change, err := s.importMaterial(ctx, k, in, &material)
		if err != nil {
			return err
		}
		out.KeyId = aws.String(k.arn)
		call.response = stringMember("keyId", k.arn)
		if k.Spec == string(types.KeySpecSymmetricDefault) {
			out.KeyMaterialId = aws.String(material.MaterialID)
			call.response = fmt.Appendf(nil, `{"keyId":%q,"keyMaterialId":%q}`, k.arn, material.MaterialID)
		}
		return s.commit(ctx, call, change)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// unwrapMaterial has the HSM unwrap what a request brings.
func (s *Service) unwrapMaterial(ctx context.Context, k *key, in *awskms.ImportKeyMaterialInput) (store.BackingKey, error) {
	var none store.BackingKey
	p, err := s.openToken(ctx, k, in.ImportToken)
	if err != nil {
		return none, err
	}
	expires, err := s.expiry(in)
	if err != nil {
		return none, err
	}
	m, err := s.domain.Import(ctx, p.Wrapping, p.Algorithm, k.Spec, hsmUses[k.Usage], in.EncryptedKeyMaterial)
	if err != nil {
		return none, fromImport(err)
	}
	provenance, err := json.Marshal(m.Provenance)
	if err != nil {
		return none, fmt.Errorf("encoding a backing key's provenance: %w", err)
	}
	return store.BackingKey{
		ID: uuid.New(), EKT: m.EKT, PublicKey: m.PublicKey, MaterialID: materialID(k.ID, checkValue(m)), Provenance: provenance,
		Created: s.now().UTC(), Expires: expires, Description: aws.ToString(in.KeyMaterialDescription),
	}, nil
}

func (s *Service) expiry(in *awskms.ImportKeyMaterialInput) (*time.Time, error) {
	if in.ExpirationModel == types.ExpirationModelTypeKeyMaterialDoesNotExpire {
		if in.ValidTo != nil {
			return nil, validation("ValidTo is not allowed when ExpirationModel is %s.", in.ExpirationModel)
		}
		return nil, nil
	}
	now := s.now()
	switch {
	case in.ValidTo == nil:
		return nil, validation("A validTo date must be set if the ExpirationModel is %s", types.ExpirationModelTypeKeyMaterialExpires)
	case !in.ValidTo.After(now):
		return nil, validation("ValidTo must be in the future.")
	case in.ValidTo.After(now.Add(maxMaterialLife)):
		return nil, validation("ValidTo must be within 365 days.")
	}
	utc := in.ValidTo.UTC()
	return &utc, nil
}

// importMaterial decides what becomes of unwrapped material, completes it and
// gathers what is written.
func (s *Service) importMaterial(ctx context.Context, k *key, in *awskms.ImportKeyMaterialInput, material *store.BackingKey) (*store.Change, error) {
	all, err := s.db.BackingKeys(ctx, k.Key, k.backingKeys)
	if err != nil {
		return nil, err
	}
	known := slices.IndexFunc(all, func(b store.BackingKey) bool { return b.MaterialID == material.MaterialID })
	if err := s.checkImport(k, in, all, known, material.MaterialID); err != nil {
		return nil, err
	}
	row := k.Key
	switch {
	case known >= 0:
		b := all[known]
		b.EKT, b.Provenance, b.Expires = material.EKT, material.Provenance, material.Expires
		if in.KeyMaterialDescription != nil {
			b.Description = material.Description
		}
		*material, all[known] = b, b
	case len(all) == 0:
		row.CurrentBackingKey = material.ID
		all = append(all, *material)
	default:
		material.Pending = true
		all = append(all, *material)
	}
	restate(&row, all)
	change := s.db.NewChange()
	if known < 0 {
		if err := s.shareImport(ctx, change, k, *material); err != nil {
			return nil, err
		}
	}
	if err := change.ChangeMaterial(ctx, row, k.backingKeys, *material); err != nil {
		return nil, unstorable(err)
	}
	return change, nil
}

// checkImport says whether material may be tied to k, whose materials are all;
// known is its place among them, or -1.
func (s *Service) checkImport(k *key, in *awskms.ImportKeyMaterialInput, all []store.BackingKey, known int, id string) error {
	kind := in.ImportType
	if kind == "" {
		kind = types.ImportTypeExistingKeyMaterial
		if len(all) == 0 {
			kind = types.ImportTypeNewKeyMaterial
		}
	}
	incorrect := &types.IncorrectKeyMaterialException{Message: aws.String("The key material is not what was imported into this key before.")}
	if kind == types.ImportTypeExistingKeyMaterial {
		if known < 0 || (in.KeyMaterialId != nil && *in.KeyMaterialId != id) {
			return incorrect
		}
		return nil
	}
	if err := s.checkNotReplica(&k.Key); err != nil { // new material comes into the primary key first
		return err
	}
	pending := slices.IndexFunc(all, func(b store.BackingKey) bool { return b.Pending })
	switch {
	case in.KeyMaterialId != nil:
		return validation("KeyMaterialId is not allowed when ImportType is %s.", kind)
	case len(all) > 0 && k.Spec != string(types.KeySpecSymmetricDefault):
		return incorrect
	case known >= 0 && known != pending:
		return &types.IncorrectKeyMaterialException{Message: aws.String("The key material is not new to this key.")}
	case known < 0 && pending >= 0:
		return &types.KMSInvalidStateException{Message: aws.String(fmt.Sprintf("New key material (id: %s) cannot be imported into KMS key %s, because another key material (id: %s) is pending rotation.",
			id, k.ID, all[pending].MaterialID))}
	}
	return nil
}

// DeleteImportedKeyMaterial deletes a material of a key, by default the current
// one. Only the same material can be imported in its place, unless it was
// still pending.
func (s *Service) DeleteImportedKeyMaterial(ctx context.Context, call *Call, in *awskms.DeleteImportedKeyMaterialInput) (*awskms.DeleteImportedKeyMaterialOutput, error) {
	out := &awskms.DeleteImportedKeyMaterialOutput{}
	err := s.change(ctx, call, func() error {
		k, err := s.authorizeKey(ctx, call, "kms:DeleteImportedKeyMaterial", *in.KeyId, keyOnly)
		if err != nil {
			return err
		}
		if err := checkExternal(k); err != nil {
			return err
		}
		out.KeyId = aws.String(k.arn)
		all, err := s.db.BackingKeys(ctx, k.Key, k.backingKeys)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(b store.BackingKey) bool {
			if in.KeyMaterialId != nil {
				return b.MaterialID == *in.KeyMaterialId
			}
			return b.ID == k.CurrentBackingKey
		})
		if i < 0 && in.KeyMaterialId != nil {
			return notFound("Key material %s of key '%s' does not exist", *in.KeyMaterialId, k.arn)
		}
		call.answeredKey(k.arn)
		if i < 0 {
			return nil // nothing has been imported: no effect
		}
		if k.Spec == string(types.KeySpecSymmetricDefault) {
			out.KeyMaterialId = aws.String(all[i].MaterialID)
		}
		if (!all[i].Pending || k.Replica()) && len(all[i].EKT) == 0 {
			return nil
		}
		change, err := s.deleteMaterial(ctx, k, all, func(b store.BackingKey) bool { return b.ID == all[i].ID })
		if err != nil {
			return err
		}
		return s.commit(ctx, call, change)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// deleteMaterial gathers the deletion of those materials of k that which
// names.
func (s *Service) deleteMaterial(ctx context.Context, k *key, all []store.BackingKey, which func(store.BackingKey) bool) (*store.Change, error) {
	row := k.Key
	change := s.db.NewChange()
	var written []store.BackingKey
	for i, b := range all {
		if !which(b) {
			continue
		}
		if b.Pending && !k.Replica() { // it was not the key's for good
			if err := s.dropElsewhere(ctx, change, k, b.ID); err != nil {
				return nil, err
			}
			if err := change.DropMaterial(ctx, row, k.backingKeys, b); err != nil {
				return nil, fmt.Errorf("sealing a deletion: %w", err)
			}
			return change, nil
		}
		b.EKT, b.Expires = nil, nil
		all[i] = b
		written = append(written, b)
	}
	restate(&row, all)
	if err := change.ChangeMaterial(ctx, row, k.backingKeys, written...); err != nil {
		return nil, fmt.Errorf("sealing a deletion: %w", err)
	}
	return change, nil
}

// restate sets what k's row says of its materials, and the state that follows
// from it: a key is usable when all that it has been given for good is there.
func restate(k *store.Key, all []store.BackingKey) {
	k.MaterialMissing, k.MaterialExpires = true, nil
	for i, b := range all {
		if b.Pending {
			continue
		}
		k.MaterialMissing = len(b.EKT) == 0 || (i > 0 && k.MaterialMissing)
		if b.Expires != nil && (k.MaterialExpires == nil || b.Expires.Before(*k.MaterialExpires)) {
			k.MaterialExpires = b.Expires
		}
	}
	switch state := types.KeyState(k.State); {
	case k.MaterialMissing && (state == types.KeyStateEnabled || state == types.KeyStateDisabled):
		k.State = string(types.KeyStatePendingImport)
	case !k.MaterialMissing && state == types.KeyStatePendingImport:
		k.State = string(types.KeyStateEnabled)
	}
}

// gone says whether imported material cannot be used.
func gone(b store.BackingKey, now time.Time) bool {
	return len(b.EKT) == 0 || (b.Expires != nil && !now.Before(*b.Expires))
}

func expirationModel(b store.BackingKey) types.ExpirationModelType {
	if b.Expires != nil {
		return types.ExpirationModelTypeKeyMaterialExpires
	}
	return types.ExpirationModelTypeKeyMaterialDoesNotExpire
}

// withExpiry shows k as it is now: from the second in which material that it
// needs expires it is pending import, whether or not a sweep has been there.
func (s *Service) withExpiry(k *key) *key {
	if k.MaterialExpires == nil || s.now().Before(*k.MaterialExpires) {
		return k
	}
	if k.State != string(types.KeyStateEnabled) && k.State != string(types.KeyStateDisabled) {
		return k
	}
	now := *k
	now.State = string(types.KeyStatePendingImport)
	return &now
}

// expireDue deletes imported material that has expired.
func (s *Service) expireDue(ctx context.Context) error {
	const atATime = 100
	var after store.KeyRef
	var failures []error
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); {
		due, err := s.db.KeysWithExpiredMaterial(ctx, s.now(), after, atATime)
		if err != nil {
			return fmt.Errorf("looking for expired key material: %w", err)
		}
		for _, ref := range due {
			if err := s.expireKey(ctx, ref); err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) {
				failures = append(failures, fmt.Errorf("deleting expired material of key %s: %w", ref.ID, err))
			}
			after = ref
		}
		if len(due) < atATime || len(failures) >= atATime {
			break
		}
	}
	return errors.Join(failures...)
}

// expireKey deletes one expired material of a key; the sweep comes again for
// the next.
func (s *Service) expireKey(ctx context.Context, ref store.KeyRef) error {
	k, err := s.cache.load(ctx, s, keyRef{account: ref.Account, region: ref.Region, id: ref.ID})
	if err != nil {
		return err
	}
	all, err := s.db.BackingKeys(ctx, k.Key, k.backingKeys)
	if err != nil {
		return err
	}
	now := s.now().UTC()
	i := slices.IndexFunc(all, func(b store.BackingKey) bool { return len(b.EKT) > 0 && gone(b, now) })
	if i < 0 {
		return nil
	}
	id, material := all[i].ID, all[i].MaterialID
	change, err := s.deleteMaterial(ctx, k, all, func(b store.BackingKey) bool { return b.ID == id })
	if err != nil {
		return err
	}
	details := fmt.Appendf(nil, `{"keyId":%q,"keyMaterialId":%q}`, k.ID, material)
	event := s.serviceEvent("DeleteExpiredKeyMaterial", k.Account, k.Region, k.arn, details, now)
	seq, err := s.audit.Commit(ctx, event, change)
	if err != nil {
		return err
	}
	s.log.Info("deleted expired key material", "key", k.arn, "material", material)
	return s.cache.advance(ctx, seq)
}
