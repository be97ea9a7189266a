package kms

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/envelope"
	"github.com/trent-kms/trent/hsm"
)

const (
	// ivSize is that of GCM's 96-bit random IVs (SP 800-38D §8.2.2).
	ivSize = 12

	// maxContext bounds an encryption context, in bytes of names and values.
	// AWS publishes no figure.
	maxContext = 8192
)

// Encrypt seals up to 4096 bytes under a key.
func (s *Service) Encrypt(ctx context.Context, call *Call, in *awskms.EncryptInput) (*awskms.EncryptOutput, error) {
	in.EncryptionAlgorithm = orSymmetric(in.EncryptionAlgorithm)
	k, err := s.authorizeKey(ctx, call, "kms:Encrypt", *in.KeyId, keyOrAlias)
	if err != nil {
		return nil, err
	}
	if err := checkUse(k, use{in.EncryptionAlgorithm, in.EncryptionContext, in.GrantTokens, in.DryRun, nil}); err != nil {
		return nil, err
	}
	blob, err := s.seal(ctx, k, in.Plaintext, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	call.usedMaterial(k.backing.MaterialID)
	return &awskms.EncryptOutput{
		CiphertextBlob:      blob,
		EncryptionAlgorithm: in.EncryptionAlgorithm,
		KeyId:               aws.String(k.arn),
	}, nil
}

// Decrypt opens a ciphertext blob, which names its key itself. A KeyId in the
// request must name the same key.
func (s *Service) Decrypt(ctx context.Context, call *Call, in *awskms.DecryptInput) (*awskms.DecryptOutput, error) {
	in.EncryptionAlgorithm = orSymmetric(in.EncryptionAlgorithm)
	k, blob, err := s.authorizeBlob(ctx, call, "kms:Decrypt", in.KeyId, in.CiphertextBlob)
	if err != nil {
		return nil, err
	}
	if in.KeyId == nil {
		in.KeyId = aws.String(k.arn) // as CloudTrail shows it
	}
	if len(in.DryRunModifiers) > 0 {
		return nil, unsupported("DryRun is not available yet.")
	}
	if err := checkUse(k, use{in.EncryptionAlgorithm, in.EncryptionContext, in.GrantTokens, in.DryRun, in.Recipient}); err != nil {
		return nil, err
	}
	plaintext, materialID, err := s.open(ctx, k, blob, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	call.usedMaterial(materialID)
	return &awskms.DecryptOutput{
		EncryptionAlgorithm: in.EncryptionAlgorithm,
		KeyId:               aws.String(k.arn),
		KeyMaterialId:       aws.String(materialID),
		Plaintext:           plaintext,
	}, nil
}

// ReEncrypt opens a blob and seals its plaintext under another key or another
// encryption context. The plaintext does not leave this function.
func (s *Service) ReEncrypt(ctx context.Context, call *Call, in *awskms.ReEncryptInput) (*awskms.ReEncryptOutput, error) {
	in.SourceEncryptionAlgorithm = orSymmetric(in.SourceEncryptionAlgorithm)
	in.DestinationEncryptionAlgorithm = orSymmetric(in.DestinationEncryptionAlgorithm)
	from, blob, err := s.authorizeBlob(ctx, call, "kms:ReEncryptFrom", in.SourceKeyId, in.CiphertextBlob)
	if err != nil {
		return nil, err
	}
	to, err := s.authorizeKey(ctx, call, "kms:ReEncryptTo", *in.DestinationKeyId, keyOrAlias)
	if err != nil {
		return nil, err
	}
	if len(in.DryRunModifiers) > 0 {
		return nil, unsupported("DryRun is not available yet.")
	}
	if err := checkUse(from, use{in.SourceEncryptionAlgorithm, in.SourceEncryptionContext, in.GrantTokens, in.DryRun, nil}); err != nil {
		return nil, err
	}
	if err := checkUse(to, use{in.DestinationEncryptionAlgorithm, in.DestinationEncryptionContext, in.GrantTokens, in.DryRun, nil}); err != nil {
		return nil, err
	}
	plaintext, fromMaterial, err := s.open(ctx, from, blob, in.SourceEncryptionContext)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	sealed, err := s.seal(ctx, to, plaintext, in.DestinationEncryptionContext)
	if err != nil {
		return nil, err
	}
	call.extra = fmt.Appendf(nil, `{"sourceKeyMaterialId":%q,"destinationKeyMaterialId":%q}`, fromMaterial, to.backing.MaterialID)
	return &awskms.ReEncryptOutput{
		CiphertextBlob:                 sealed,
		SourceKeyId:                    aws.String(from.arn),
		SourceKeyMaterialId:            aws.String(fromMaterial),
		SourceEncryptionAlgorithm:      in.SourceEncryptionAlgorithm,
		KeyId:                          aws.String(to.arn),
		DestinationKeyMaterialId:       aws.String(to.backing.MaterialID),
		DestinationEncryptionAlgorithm: in.DestinationEncryptionAlgorithm,
	}, nil
}

func orSymmetric(algorithm types.EncryptionAlgorithmSpec) types.EncryptionAlgorithmSpec {
	if algorithm == "" {
		return types.EncryptionAlgorithmSpecSymmetricDefault
	}
	return algorithm
}

// use is what the cryptographic operations' inputs have in common.
type use struct {
	algorithm   types.EncryptionAlgorithmSpec
	context     map[string]string
	grantTokens []string
	dryRun      *bool
	recipient   *types.RecipientInfo
}

// checkUse refuses what the key or this release cannot do.
func checkUse(k *key, u use) error {
	if u.algorithm != types.EncryptionAlgorithmSpecSymmetricDefault {
		return &types.InvalidKeyUsageException{Message: aws.String(fmt.Sprintf("Algorithm %s is incompatible with key spec %s.", u.algorithm, k.Spec))}
	}
	size := 0
	for name, value := range u.context {
		size += len(name) + len(value)
	}
	if size > maxContext {
		return validation("The encryption context has %d bytes; %d are allowed.", size, maxContext)
	}
	if u.dryRun != nil && *u.dryRun {
		return unsupported("DryRun is not available yet.")
	}
	if u.recipient != nil {
		return unsupported("Recipient is not available yet.")
	}
	return noGrants(u.grantTokens)
}

// seal encrypts plaintext under the key's current backing key. It spends one
// message of the backing key's budget of random IVs.
func (s *Service) seal(ctx context.Context, k *key, plaintext []byte, encryptionContext map[string]string) ([]byte, error) {
	if err := s.budgets.spend(ctx, k); err != nil {
		return nil, err
	}
	iv := make([]byte, ivSize)
	if _, err := rand.Read(iv); err != nil {
		return nil, fmt.Errorf("making an IV: %w", err)
	}
	header, err := envelope.AppendHeader(nil, envelope.Header{KeyID: k.ID, BackingKey: k.backing.ID, IV: iv})
	if err != nil {
		return nil, fmt.Errorf("making a ciphertext header: %w", err)
	}
	sealed, err := s.domain.Encrypt(ctx, k.backing.EKT, iv, envelope.AAD(header, encryptionContext), plaintext)
	if err != nil {
		return nil, s.fromUse(k, "encrypting", err)
	}
	return append(header, sealed...), nil
}

// blob is a ciphertext blob taken apart.
type blob struct {
	envelope.Header
	header, sealed []byte
}

// authorizeBlob resolves and authorises the key of a ciphertext blob.
func (s *Service) authorizeBlob(ctx context.Context, call *Call, action string, keyID *string, ciphertext []byte) (*key, blob, error) {
	if keyID == nil && !s.allowed(call) {
		return nil, blob{}, unknownCiphertextKey()
	}
	var k *key
	var err error
	if keyID != nil {
		if k, err = s.authorizeKey(ctx, call, action, *keyID, keyOrAlias); err != nil {
			return nil, blob{}, err
		}
	}
	if ciphertext == nil {
		return nil, blob{}, validation("1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null")
	}
	var b blob
	if b.Header, b.header, b.sealed, err = envelope.Parse(ciphertext); err != nil {
		return nil, blob{}, invalidCiphertext()
	}
	if k == nil {
		ref := keyRef{account: call.Principal.Account, region: call.Region, id: b.KeyID}
		k, err = s.authorizeRef(ctx, call, action, ref, call.Operation)
		var missing *types.NotFoundException
		if errors.As(err, &missing) {
			return nil, blob{}, unknownCiphertextKey()
		}
		return k, b, err
	}
	if b.KeyID != k.ID {
		return nil, blob{}, &types.IncorrectKeyException{Message: aws.String("The key ID in the request does not identify a CMK that can perform this operation.")}
	}
	return k, b, nil
}

// open decrypts a blob with the backing key that it names, which must be one
// of the key's own.
func (s *Service) open(ctx context.Context, k *key, b blob, encryptionContext map[string]string) (plaintext []byte, materialID string, err error) {
	backing := k.backing
	if b.BackingKey != backing.ID {
		backing, err = s.cache.member(ctx, k, b.BackingKey)
		if errors.Is(err, errNotMember) {
			return nil, "", invalidCiphertext()
		}
		if err != nil {
			return nil, "", err
		}
	}
	plaintext, err = s.domain.Decrypt(ctx, backing.EKT, b.IV, envelope.AAD(b.header, encryptionContext), b.sealed)
	if err != nil {
		return nil, "", s.fromUse(k, "decrypting", err)
	}
	return plaintext, backing.MaterialID, nil
}

// fromUse maps the failure of a use of k's backing key. An EKT that the HSM
// refuses although its row's MAC was right is an alarm, not the caller's fault.
func (s *Service) fromUse(k *key, doing string, err error) error {
	if errors.Is(err, hsm.ErrInvalidEKT) {
		s.log.Error("the HSM refuses a stored key token: check which domain this database belongs to", "key", k.arn, "error", err)
	}
	return fmt.Errorf("%s with %s: %w", doing, k.arn, err)
}
