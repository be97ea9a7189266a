package kms

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// GenerateDataKey makes a data key in the HSM and returns it in the clear and
// sealed under a key.
func (s *Service) GenerateDataKey(ctx context.Context, call *Call, in *awskms.GenerateDataKeyInput) (*awskms.GenerateDataKeyOutput, error) {
	call.recipient = recipient{info: in.Recipient}
	k, err := s.authorizeKey(ctx, call, "kms:GenerateDataKey", *in.KeyId, keyOrAlias)
	if err != nil {
		return nil, err
	}
	u := use{orSymmetric(""), in.EncryptionContext, in.GrantTokens}
	plaintext, sealed, err := s.dataKey(ctx, call, k, in.KeySpec, in.NumberOfBytes, u, in.DryRun)
	if err != nil {
		return nil, err
	}
	open, forRecipient, err := s.answerTo(call, plaintext)
	if err != nil {
		return nil, err
	}
	return &awskms.GenerateDataKeyOutput{
		CiphertextBlob:         sealed,
		CiphertextForRecipient: forRecipient,
		KeyId:                  aws.String(k.arn),
		KeyMaterialId:          call.materialFor(&k.backing.MaterialID),
		Plaintext:              open,
	}, nil
}

// GenerateDataKeyWithoutPlaintext makes a data key and returns it sealed only.
func (s *Service) GenerateDataKeyWithoutPlaintext(ctx context.Context, call *Call, in *awskms.GenerateDataKeyWithoutPlaintextInput) (*awskms.GenerateDataKeyWithoutPlaintextOutput, error) {
	k, err := s.authorizeKey(ctx, call, "kms:GenerateDataKeyWithoutPlaintext", *in.KeyId, keyOrAlias)
	if err != nil {
		return nil, err
	}
	u := use{orSymmetric(""), in.EncryptionContext, in.GrantTokens}
	plaintext, sealed, err := s.dataKey(ctx, call, k, in.KeySpec, in.NumberOfBytes, u, in.DryRun)
	if err != nil {
		return nil, err
	}
	clear(plaintext)
	return &awskms.GenerateDataKeyWithoutPlaintextOutput{
		CiphertextBlob: sealed,
		KeyId:          aws.String(k.arn),
		KeyMaterialId:  aws.String(k.backing.MaterialID),
	}, nil
}

// dataKey costs two HSM operations: random, encrypt.
func (s *Service) dataKey(ctx context.Context, call *Call, k *key, spec types.DataKeySpec, bytes *int32, u use, rehearsal *bool) (plaintext, sealed []byte, err error) {
	if err := s.checkUse(ctx, call, k, u); err != nil {
		return nil, nil, err
	}
	size, err := dataKeySize(spec, bytes)
	if err != nil {
		return nil, nil, err
	}
	if _, err := s.attested(call); err != nil {
		return nil, nil, err
	}
	if err := dryRun(rehearsal); err != nil {
		return nil, nil, err
	}
	plaintext = make([]byte, size)
	if err := s.domain.Random(ctx, plaintext); err != nil {
		return nil, nil, fmt.Errorf("generating a data key: %w", err)
	}
	sealed, err = s.seal(ctx, k, plaintext, u.context)
	if err != nil {
		clear(plaintext)
		return nil, nil, err
	}
	call.usedMaterial(k.backing.MaterialID)
	return plaintext, sealed, nil
}

func dataKeySize(spec types.DataKeySpec, bytes *int32) (int, error) {
	if (spec == "") == (bytes == nil) {
		return 0, validation("Please specify either number of bytes or key spec.")
	}
	switch spec {
	case types.DataKeySpecAes256:
		return 32, nil
	case types.DataKeySpecAes128:
		return 16, nil
	}
	return int(*bytes), nil
}

// GenerateRandom returns random bytes of the HSM.
func (s *Service) GenerateRandom(ctx context.Context, call *Call, in *awskms.GenerateRandomInput) (*awskms.GenerateRandomOutput, error) {
	call.recipient = recipient{info: in.Recipient}
	if err := s.authorize(call, "kms:GenerateRandom"); err != nil {
		return nil, err
	}
	switch {
	case in.CustomKeyStoreId != nil:
		return nil, unsupported("Custom key stores are not available yet.")
	case in.NumberOfBytes == nil:
		return nil, validation("NumberOfBytes is required.")
	}
	if _, err := s.attested(call); err != nil {
		return nil, err
	}
	random := make([]byte, *in.NumberOfBytes)
	if err := s.domain.Random(ctx, random); err != nil {
		return nil, fmt.Errorf("generating random bytes: %w", err)
	}
	open, sealed, err := s.answerTo(call, random)
	if err != nil {
		return nil, err
	}
	return &awskms.GenerateRandomOutput{CiphertextForRecipient: sealed, Plaintext: open}, nil
}
