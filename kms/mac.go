package kms

import (
	"context"
	"crypto/subtle"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// GenerateMac computes the HMAC of a message of up to 4096 bytes in the HSM.
func (s *Service) GenerateMac(ctx context.Context, call *Call, in *awskms.GenerateMacInput) (*awskms.GenerateMacOutput, error) {
	k, err := s.authorizeMAC(ctx, call, *in.KeyId, in.MacAlgorithm, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	if err := dryRun(in.DryRun); err != nil {
		return nil, err
	}
	mac, err := s.mac(ctx, k, in.MacAlgorithm, in.Message)
	if err != nil {
		return nil, err
	}
	return &awskms.GenerateMacOutput{KeyId: aws.String(k.arn), Mac: mac, MacAlgorithm: in.MacAlgorithm}, nil
}

// VerifyMac computes the HMAC of a message once more and compares it with the
// caller's, which must have its whole length.
func (s *Service) VerifyMac(ctx context.Context, call *Call, in *awskms.VerifyMacInput) (*awskms.VerifyMacOutput, error) {
	k, err := s.authorizeMAC(ctx, call, *in.KeyId, in.MacAlgorithm, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	mac, err := s.mac(ctx, k, in.MacAlgorithm, in.Message)
	if err != nil {
		return nil, err
	}
	defer clear(mac) // the right one may not leave if the caller's was wrong
	if subtle.ConstantTimeCompare(mac, in.Mac) != 1 {
		return nil, &types.KMSInvalidMacException{}
	}
	if err := dryRun(in.DryRun); err != nil {
		return nil, err
	}
	return &awskms.VerifyMacOutput{KeyId: aws.String(k.arn), MacAlgorithm: in.MacAlgorithm, MacValid: true}, nil
}

func (s *Service) authorizeMAC(ctx context.Context, call *Call, keyID string, algorithm types.MacAlgorithmSpec, tokens []string) (*key, error) {
	k, err := s.authorizeKey(ctx, call, "kms:"+call.Operation, keyID, keyOrAlias)
	if err != nil {
		return nil, err
	}
	if err := checkUsage(call, k, types.KeyUsageTypeGenerateVerifyMac, string(algorithm)); err != nil {
		return nil, err
	}
	return k, s.checkGrantTokens(ctx, tokens)
}

func (s *Service) mac(ctx context.Context, k *key, algorithm types.MacAlgorithmSpec, message []byte) ([]byte, error) {
	mac, err := s.domain.MAC(ctx, k.backing.EKT, string(algorithm), message)
	if err != nil {
		return nil, s.fromUse(k, "computing a MAC", err)
	}
	return mac, nil
}
