package kms

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// GenerateDataKeyPair makes a key pair in the HSM and returns its public half,
// and its private half in the clear and sealed under a key. That the private
// half is shown is what this operation is for; the HSM keeps nothing.
func (s *Service) GenerateDataKeyPair(ctx context.Context, call *Call, in *awskms.GenerateDataKeyPairInput) (*awskms.GenerateDataKeyPairOutput, error) {
	call.recipient = recipient{info: in.Recipient}
	u := use{orSymmetric(""), in.EncryptionContext, in.GrantTokens}
	k, pair, err := s.dataKeyPair(ctx, call, *in.KeyId, in.KeyPairSpec, u, in.DryRun)
	if err != nil {
		return nil, err
	}
	open, sealed, err := s.answerTo(call, pair.private)
	if err != nil {
		return nil, err
	}
	return &awskms.GenerateDataKeyPairOutput{
		CiphertextForRecipient:   sealed,
		KeyId:                    aws.String(k.arn),
		KeyMaterialId:            call.materialFor(&k.backing.MaterialID),
		KeyPairSpec:              in.KeyPairSpec,
		PrivateKeyCiphertextBlob: pair.sealed,
		PrivateKeyPlaintext:      open,
		PublicKey:                pair.public,
	}, nil
}

// GenerateDataKeyPairWithoutPlaintext makes a key pair and returns its private
// half sealed only.
func (s *Service) GenerateDataKeyPairWithoutPlaintext(ctx context.Context, call *Call, in *awskms.GenerateDataKeyPairWithoutPlaintextInput) (*awskms.GenerateDataKeyPairWithoutPlaintextOutput, error) {
	u := use{orSymmetric(""), in.EncryptionContext, in.GrantTokens}
	k, pair, err := s.dataKeyPair(ctx, call, *in.KeyId, in.KeyPairSpec, u, in.DryRun)
	if err != nil {
		return nil, err
	}
	clear(pair.private)
	return &awskms.GenerateDataKeyPairWithoutPlaintextOutput{
		KeyId:                    aws.String(k.arn),
		KeyMaterialId:            aws.String(k.backing.MaterialID),
		KeyPairSpec:              in.KeyPairSpec,
		PrivateKeyCiphertextBlob: pair.sealed,
		PublicKey:                pair.public,
	}, nil
}

// dataKeyPair is a key pair for the caller: a PKCS #8 PrivateKeyInfo, the
// same sealed, and a SubjectPublicKeyInfo.
type dataKeyPair struct{ private, sealed, public []byte }

func (s *Service) dataKeyPair(ctx context.Context, call *Call, keyID string, spec types.DataKeyPairSpec, u use, rehearsal *bool) (*key, dataKeyPair, error) {
	k, err := s.authorizeKey(ctx, call, "kms:"+call.Operation, keyID, keyOrAlias)
	if err != nil {
		return nil, dataKeyPair{}, err
	}
	if err := s.checkUse(ctx, call, k, u); err != nil {
		return nil, dataKeyPair{}, err
	}
	if keySpecs[types.KeySpec(spec)].usages == nil {
		return nil, dataKeyPair{}, unsupported("KeyPairSpec %s is not available in this Region.", spec)
	}
	if _, err := s.attested(call); err != nil {
		return nil, dataKeyPair{}, err
	}
	if err := dryRun(rehearsal); err != nil {
		return nil, dataKeyPair{}, err
	}
	var pair dataKeyPair
	if pair.private, pair.public, err = s.domain.GenerateDataKeyPair(ctx, string(spec)); err != nil {
		return nil, dataKeyPair{}, fmt.Errorf("generating a data key pair: %w", fromDevice(err))
	}
	if pair.sealed, err = s.seal(ctx, k, pair.private, u.context); err != nil {
		clear(pair.private)
		return nil, dataKeyPair{}, err
	}
	call.usedMaterial(k.backing.MaterialID)
	return k, pair, nil
}
