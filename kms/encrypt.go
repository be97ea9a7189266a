package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/envelope"
	"github.com/trent-kms/trent/hsm"
)

const (
	// maxContext bounds an encryption context, in bytes of names and values.
	// AWS publishes no figure.
	maxContext = 8192
)

// Encrypt seals up to 4096 bytes under a key, or what its RSA modulus holds.
func (s *Service) Encrypt(ctx context.Context, call *Call, in *awskms.EncryptInput) (*awskms.EncryptOutput, error) {
	in.EncryptionAlgorithm = orSymmetric(in.EncryptionAlgorithm)
	k, err := s.authorizeKey(ctx, call, "kms:Encrypt", *in.KeyId, keyOrAlias)
	if err != nil {
		return nil, err
	}
	if err := s.checkUse(ctx, call, k, use{in.EncryptionAlgorithm, in.EncryptionContext, in.GrantTokens}); err != nil {
		return nil, err
	}
	if err := checkSize(k, in.EncryptionAlgorithm, in.Plaintext); err != nil {
		return nil, err
	}
	if err := dryRun(in.DryRun); err != nil {
		return nil, err
	}
	blob, err := s.encrypt(ctx, k, in.EncryptionAlgorithm, in.Plaintext, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	if k.symmetric() {
		call.usedMaterial(k.backing.MaterialID)
	}
	return &awskms.EncryptOutput{
		CiphertextBlob:      blob,
		EncryptionAlgorithm: in.EncryptionAlgorithm,
		KeyId:               aws.String(k.arn),
	}, nil
}

// Decrypt opens a ciphertext. A blob of a symmetric key names its key itself,
// and a KeyId in the request must name the same one; for an RSA key the
// request has to name it.
func (s *Service) Decrypt(ctx context.Context, call *Call, in *awskms.DecryptInput) (*awskms.DecryptOutput, error) {
	call.recipient = recipient{info: in.Recipient}
	in.EncryptionAlgorithm = orSymmetric(in.EncryptionAlgorithm)
	from := source{keyID: in.KeyId, ciphertext: in.CiphertextBlob, dryRun: in.DryRun, modifiers: in.DryRunModifiers,
		use: use{in.EncryptionAlgorithm, in.EncryptionContext, in.GrantTokens}}
	k, err := s.authorizeSource(ctx, call, "kms:Decrypt", &from)
	if err != nil {
		return nil, err
	}
	if in.KeyId == nil {
		in.KeyId = aws.String(k.arn) // as CloudTrail shows it
	}
	plaintext, materialID, err := s.openSource(ctx, k, &from)
	if err != nil {
		return nil, err
	}
	if err := dryRun(in.DryRun); err != nil {
		clear(plaintext)
		return nil, err
	}
	if materialID != nil {
		call.usedMaterial(*materialID)
	}
	open, sealed, err := s.answerTo(call, plaintext)
	if err != nil {
		return nil, err
	}
	return &awskms.DecryptOutput{
		CiphertextForRecipient: sealed,
		EncryptionAlgorithm:    in.EncryptionAlgorithm,
		KeyId:                  aws.String(k.arn),
		KeyMaterialId:          call.materialFor(materialID),
		Plaintext:              open,
	}, nil
}

// ReEncrypt opens a ciphertext and seals its plaintext under another key or
// another encryption context. The plaintext does not leave this function.
func (s *Service) ReEncrypt(ctx context.Context, call *Call, in *awskms.ReEncryptInput) (*awskms.ReEncryptOutput, error) {
	in.SourceEncryptionAlgorithm = orSymmetric(in.SourceEncryptionAlgorithm)
	in.DestinationEncryptionAlgorithm = orSymmetric(in.DestinationEncryptionAlgorithm)
	source := source{keyID: in.SourceKeyId, ciphertext: in.CiphertextBlob, dryRun: in.DryRun, modifiers: in.DryRunModifiers,
		use: use{in.SourceEncryptionAlgorithm, in.SourceEncryptionContext, in.GrantTokens}}
	from, err := s.authorizeSource(ctx, call, "kms:ReEncryptFrom", &source)
	if err != nil {
		return nil, err
	}
	to, err := s.authorizeKey(ctx, call, "kms:ReEncryptTo", *in.DestinationKeyId, keyOrAlias)
	if err != nil {
		return nil, err
	}
	if err := s.checkUse(ctx, call, to, use{in.DestinationEncryptionAlgorithm, in.DestinationEncryptionContext, in.GrantTokens}); err != nil {
		return nil, err
	}
	plaintext, fromMaterial, err := s.openSource(ctx, from, &source)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	if err := checkSize(to, in.DestinationEncryptionAlgorithm, plaintext); err != nil {
		return nil, err
	}
	if err := dryRun(in.DryRun); err != nil {
		return nil, err
	}
	sealed, err := s.encrypt(ctx, to, in.DestinationEncryptionAlgorithm, plaintext, in.DestinationEncryptionContext)
	if err != nil {
		return nil, err
	}
	out := &awskms.ReEncryptOutput{
		CiphertextBlob:                 sealed,
		SourceKeyId:                    aws.String(from.arn),
		SourceKeyMaterialId:            fromMaterial,
		SourceEncryptionAlgorithm:      in.SourceEncryptionAlgorithm,
		KeyId:                          aws.String(to.arn),
		DestinationEncryptionAlgorithm: in.DestinationEncryptionAlgorithm,
	}
	if to.symmetric() {
		out.DestinationKeyMaterialId = aws.String(to.backing.MaterialID)
	}
	if from.symmetric() || to.symmetric() {
		call.extra = awsjson.AppendMembers(nil, out, []string{"SourceKeyMaterialId", "DestinationKeyMaterialId"})
	}
	return out, nil
}

func orSymmetric(algorithm types.EncryptionAlgorithmSpec) types.EncryptionAlgorithmSpec {
	if algorithm == "" {
		return types.EncryptionAlgorithmSpecSymmetricDefault
	}
	return algorithm
}

// use is what the inputs of the operations that encrypt have in common.
type use struct {
	algorithm   types.EncryptionAlgorithmSpec
	context     map[string]string
	grantTokens []string
}

// checkUse refuses what the key or this release cannot do.
func (s *Service) checkUse(ctx context.Context, call *Call, k *key, u use) error {
	if err := checkUsage(call, k, types.KeyUsageTypeEncryptDecrypt, string(u.algorithm)); err != nil {
		return err
	}
	if len(u.context) > 0 && !k.symmetric() {
		return validation("EncryptionContext is not supported when encrypting/decrypting with asymmetric CMKs.")
	}
	size := 0
	for name, value := range u.context {
		size += len(name) + len(value)
	}
	if size > maxContext {
		return validation("The encryption context has %d bytes; %d are allowed.", size, maxContext)
	}
	return s.checkGrantTokens(ctx, u.grantTokens)
}

// dryRun answers a call that would have succeeded if it is only a rehearsal.
func dryRun(asked *bool) error {
	if aws.ToBool(asked) {
		return &types.DryRunOperationException{Message: aws.String("The request would have succeeded, but the DryRun option is set.")}
	}
	return nil
}

// encrypt seals plaintext, which checkSize has passed.
func (s *Service) encrypt(ctx context.Context, k *key, algorithm types.EncryptionAlgorithmSpec, plaintext []byte, encryptionContext map[string]string) ([]byte, error) {
	if !k.symmetric() {
		return encryptRSA(k, algorithm, plaintext)
	}
	return s.seal(ctx, k, plaintext, encryptionContext)
}

// seal encrypts plaintext under the key's current backing key. It spends one
// message of the backing key's budget of random IVs.
func (s *Service) seal(ctx context.Context, k *key, plaintext []byte, encryptionContext map[string]string) ([]byte, error) {
	if err := s.budgets.spend(ctx, k); err != nil {
		return nil, err
	}
	header, err := envelope.AppendHeader(nil, envelope.Header{KeyID: k.ID, BackingKey: k.backing.ID})
	if err != nil {
		return nil, fmt.Errorf("making a ciphertext header: %w", err)
	}
	iv, sealed, err := s.domain.Encrypt(ctx, k.backing.EKT, envelope.AAD(header, encryptionContext), plaintext)
	if err != nil {
		return nil, s.fromUse(k, "encrypting", err)
	}
	blob, err := envelope.Finish(header, iv, sealed)
	if err != nil {
		return nil, fmt.Errorf("making a ciphertext blob: %w", err)
	}
	return blob, nil
}

func parseBlob(ciphertext []byte) (envelope.Blob, error) {
	blob, err := envelope.Parse(ciphertext)
	if err != nil {
		return envelope.Blob{}, invalidCiphertext()
	}
	return blob, nil
}

// source is a ciphertext as a request brings it.
type source struct {
	keyID      *string
	ciphertext []byte
	dryRun     *bool
	modifiers  []types.DryRunModifierType
	use        use
	blob       envelope.Blob // set once it has been parsed
}

// absent reports whether a rehearsal is to do without the ciphertext.
func (f *source) absent() bool {
	return aws.ToBool(f.dryRun) && slices.Contains(f.modifiers, types.DryRunModifierTypeIgnoreCiphertext)
}

// check refuses a source that has not what it takes to find the key.
func (f *source) check() error {
	switch {
	case len(f.modifiers) > 0 && !aws.ToBool(f.dryRun):
		return validation("DryRunModifiers are only allowed together with DryRun.")
	case f.absent() && f.keyID == nil:
		return validation("The KeyId of the ciphertext is required when the ciphertext is ignored.")
	case f.ciphertext == nil && !f.absent():
		return validation("1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null")
	case f.keyID == nil && f.use.algorithm != types.EncryptionAlgorithmSpecSymmetricDefault:
		return validation("The KeyId of the ciphertext is required with algorithm %s.", f.use.algorithm)
	}
	return nil
}

// authorizeSource resolves and authorises the key of a ciphertext, and refuses
// what that key or this release cannot do.
func (s *Service) authorizeSource(ctx context.Context, call *Call, action string, from *source) (*key, error) {
	k, err := s.sourceKey(ctx, call, action, from)
	if err != nil {
		return nil, err
	}
	if k.Usage != string(types.KeyUsageTypeEncryptDecrypt) {
		return nil, incorrectKey()
	}
	if err := s.checkUse(ctx, call, k, from.use); err != nil {
		return nil, err
	}
	_, err = s.attested(call)
	return k, err
}

func (s *Service) sourceKey(ctx context.Context, call *Call, action string, from *source) (*key, error) {
	if from.keyID != nil {
		k, err := s.authorizeKey(ctx, call, action, *from.keyID, keyOrAlias)
		if err != nil {
			return nil, err
		}
		return k, from.check()
	}
	if !s.allowed(call) {
		return nil, unknownCiphertextKey()
	}
	if err := from.check(); err != nil {
		return nil, err
	}
	var err error
	if from.blob, err = parseBlob(from.ciphertext); err != nil {
		return nil, err
	}
	ref := keyRef{account: call.Principal.Account, region: call.Region, id: from.blob.KeyID}
	k, err := s.authorizeRef(ctx, call, action, ref, call.Operation)
	var missing *types.NotFoundException
	if errors.As(err, &missing) {
		return nil, unknownCiphertextKey()
	}
	return k, err
}

func incorrectKey() error {
	return &types.IncorrectKeyException{Message: aws.String("The key ID in the request does not identify a CMK that can perform this operation.")}
}

// openSource decrypts a ciphertext whose key authorizeSource has found. The
// material id is that of a symmetric key, else nil.
func (s *Service) openSource(ctx context.Context, k *key, from *source) (plaintext []byte, materialID *string, err error) {
	if from.absent() {
		return nil, nil, nil
	}
	if !k.symmetric() {
		plaintext, err = s.domain.DecryptRSA(ctx, k.backing.EKT, string(from.use.algorithm), from.ciphertext)
		if err != nil {
			return nil, nil, s.fromUse(k, "decrypting", err)
		}
		return plaintext, nil, nil
	}
	if from.blob.Encoded == nil {
		if from.blob, err = parseBlob(from.ciphertext); err != nil {
			return nil, nil, err
		}
	}
	if from.blob.KeyID != k.ID {
		return nil, nil, incorrectKey()
	}
	plaintext, id, err := s.open(ctx, k, from.blob, from.use.context)
	if err != nil {
		return nil, nil, err
	}
	return plaintext, &id, nil
}

// open decrypts a blob with the backing key that it names, which must be one
// of the key's own.
func (s *Service) open(ctx context.Context, k *key, b envelope.Blob, encryptionContext map[string]string) (plaintext []byte, materialID string, err error) {
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
	plaintext, err = s.domain.Decrypt(ctx, backing.EKT, b.IV, envelope.AAD(b.Encoded, encryptionContext), b.Sealed)
	if err != nil {
		return nil, "", s.fromUse(k, "decrypting", err)
	}
	return plaintext, backing.MaterialID, nil
}

// fromUse maps the failure of a use of k's backing key. An EKT that the HSM
// refuses although its row's MAC was right is an alarm, not the caller's fault.
func (s *Service) fromUse(k *key, doing string, err error) error {
	if errors.Is(err, hsm.ErrInvalidEKT) {
		s.log.Error("the HSM refuses a stored key token: look at trent domain status for who holds its generation, else check which domain this database belongs to", "key", k.arn, "error", err)
	}
	return fmt.Errorf("%s with %s: %w", doing, k.arn, fromDevice(err))
}
