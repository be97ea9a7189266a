package kms

import (
	"context"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Encapsulate refuses every key: see authorizeKEM.
func (s *Service) Encapsulate(ctx context.Context, call *Call, in *awskms.EncapsulateInput) (*awskms.EncapsulateOutput, error) {
	return nil, s.authorizeKEM(ctx, call, *in.KeyId, in.EncapsulationAlgorithm, in.GrantTokens)
}

// Decapsulate refuses every key: see authorizeKEM.
func (s *Service) Decapsulate(ctx context.Context, call *Call, in *awskms.DecapsulateInput) (*awskms.DecapsulateOutput, error) {
	return nil, s.authorizeKEM(ctx, call, *in.KeyId, in.EncapsulationAlgorithm, in.GrantTokens)
}

// authorizeKEM refuses keys that are not for key encapsulation, as AWS does.
// There are no others: decapsulation is a call of PKCS#11 3.2, for which the
// HSM interface has no place, so that CreateKey refuses the usage.
func (s *Service) authorizeKEM(ctx context.Context, call *Call, keyID string, algorithm types.EncapsulationAlgorithmSpec, tokens []string) error {
	k, err := s.authorizeKey(ctx, call, "kms:"+call.Operation, keyID, keyOrAlias)
	if err != nil {
		return err
	}
	if err := checkUsage(call, k, types.KeyUsageTypeEncapsulateDecapsulate, string(algorithm)); err != nil {
		return err
	}
	if err := s.checkGrantTokens(ctx, tokens); err != nil {
		return err
	}
	return unsupported("%s needs C_DecapsulateKey of PKCS#11 3.2 with CKM_ML_KEM, which this release does not call.", call.Operation)
}
