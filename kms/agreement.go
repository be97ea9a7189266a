package kms

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/trent-kms/trent/hsm"
)

// DeriveSharedSecret agrees on a secret with the owner of another public key
// on the key's own curve. The secret is the x coordinate as it is, to be put
// through a key derivation function by the caller (SP 800-56A).
func (s *Service) DeriveSharedSecret(ctx context.Context, call *Call, in *awskms.DeriveSharedSecretInput) (*awskms.DeriveSharedSecretOutput, error) {
	call.recipient = recipient{info: in.Recipient}
	k, err := s.authorizeKey(ctx, call, "kms:DeriveSharedSecret", *in.KeyId, keyOrAlias)
	if err != nil {
		return nil, err
	}
	if err := checkUsage(call, k, types.KeyUsageTypeKeyAgreement, string(in.KeyAgreementAlgorithm)); err != nil {
		return nil, err
	}
	if err := s.checkGrantTokens(ctx, in.GrantTokens); err != nil {
		return nil, err
	}
	if err := checkPeer(k, in.PublicKey); err != nil {
		return nil, err
	}
	if _, err := s.attested(call); err != nil {
		return nil, err
	}
	if err := dryRun(in.DryRun); err != nil {
		return nil, err
	}
	secret, err := s.domain.Agree(ctx, k.backing.EKT, in.PublicKey)
	if errors.Is(err, hsm.ErrArgument) {
		return nil, badPeer()
	}
	if err != nil {
		return nil, s.fromUse(k, "agreeing on a secret", err)
	}
	open, sealed, err := s.answerTo(call, secret)
	if err != nil {
		return nil, err
	}
	return &awskms.DeriveSharedSecretOutput{
		CiphertextForRecipient: sealed,
		KeyAgreementAlgorithm:  in.KeyAgreementAlgorithm,
		KeyId:                  aws.String(k.arn),
		KeyOrigin:              types.OriginType(k.Origin),
		SharedSecret:           open,
	}, nil
}

// checkPeer refuses what is no point on k's curve: with such a point the
// secret would betray the private key.
func checkPeer(k *key, spki []byte) error {
	own, err := k.publicKey()
	if err != nil {
		return err
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return badPeer()
	}
	peer, isEC := parsed.(*ecdsa.PublicKey)
	pair, ownEC := own.(*ecdsa.PublicKey)
	if !isEC || !ownEC || peer.Curve != pair.Curve {
		return badPeer()
	}
	return nil
}

// badPeer has no message, like AWS's.
func badPeer() error {
	return &smithy.GenericAPIError{Code: "ValidationException", Fault: smithy.FaultClient}
}
