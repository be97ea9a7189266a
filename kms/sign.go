package kms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha512"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/hsm"
)

// Sign signs a message of up to 4096 bytes, or its digest, in the HSM.
func (s *Service) Sign(ctx context.Context, call *Call, in *awskms.SignInput) (*awskms.SignOutput, error) {
	k, digest, err := s.authorizeSigning(ctx, call, *in.KeyId, signing{in.SigningAlgorithm, in.MessageType, in.Message, in.GrantTokens})
	if err != nil {
		return nil, err
	}
	if err := dryRun(in.DryRun); err != nil {
		return nil, err
	}
	signature, err := s.domain.Sign(ctx, k.backing.EKT, string(in.SigningAlgorithm), digest)
	if err != nil {
		return nil, s.fromUse(k, "signing", err)
	}
	if err := s.checkPrehashed(ctx, k, in.SigningAlgorithm, digest, signature); err != nil {
		return nil, err
	}
	return &awskms.SignOutput{KeyId: aws.String(k.arn), Signature: signature, SigningAlgorithm: in.SigningAlgorithm}, nil
}

// checkPrehashed keeps back the signature of a device that has CKM_EDDSA and
// passes over the flag that makes it Ed25519ph: it would verify nowhere.
func (s *Service) checkPrehashed(ctx context.Context, k *key, algorithm types.SigningAlgorithmSpec, digest, signature []byte) error {
	if algorithm != types.SigningAlgorithmSpecEd25519PhSha512 {
		return nil
	}
	if valid, err := s.verify(ctx, k, algorithm, digest, signature); err != nil || valid {
		return err
	}
	return unsupported("%s is not available: this HSM's CKM_EDDSA does not heed the flag for it.", algorithm)
}

// Verify verifies a signature by the key's public half, so that the private
// one is not used.
func (s *Service) Verify(ctx context.Context, call *Call, in *awskms.VerifyInput) (*awskms.VerifyOutput, error) {
	k, digest, err := s.authorizeSigning(ctx, call, *in.KeyId, signing{in.SigningAlgorithm, in.MessageType, in.Message, in.GrantTokens})
	if err != nil {
		return nil, err
	}
	valid, err := s.verify(ctx, k, in.SigningAlgorithm, digest, in.Signature)
	if err != nil {
		return nil, err
	}
	if !valid {
		return nil, &types.KMSInvalidSignatureException{}
	}
	if err := dryRun(in.DryRun); err != nil {
		return nil, err
	}
	return &awskms.VerifyOutput{KeyId: aws.String(k.arn), SignatureValid: true, SigningAlgorithm: in.SigningAlgorithm}, nil
}

// signing is what the inputs of Sign and Verify have in common.
type signing struct {
	algorithm   types.SigningAlgorithmSpec
	messageType types.MessageType
	message     []byte
	grantTokens []string
}

// authorizeSigning returns the key, and what hsm.Domain.Sign takes for the
// message.
func (s *Service) authorizeSigning(ctx context.Context, call *Call, keyID string, in signing) (*key, []byte, error) {
	k, err := s.authorizeKey(ctx, call, "kms:"+call.Operation, keyID, keyOrAlias)
	if err != nil {
		return nil, nil, err
	}
	if err := checkUsage(call, k, types.KeyUsageTypeSignVerify, string(in.algorithm)); err != nil {
		return nil, nil, err
	}
	if err := s.checkGrantTokens(ctx, in.grantTokens); err != nil {
		return nil, nil, err
	}
	digest, err := in.digest()
	return k, digest, err
}

// digest is what is signed of a message: its digest, the message itself where
// the algorithm has no digest of its own, or what the caller has digested.
func (in signing) digest() ([]byte, error) {
	a := signingAlgorithms[in.algorithm]
	if in.messageType == "" || in.messageType == types.MessageTypeRaw {
		switch {
		case a.notRaw:
			return nil, validation("MessageType RAW is not valid for algorithm %s.", in.algorithm)
		case a.hash == 0:
			return in.message, nil
		}
		h := a.hash.New()
		h.Write(in.message)
		return h.Sum(nil), nil
	}
	size, takes := a.takes[in.messageType]
	switch {
	case !takes:
		return nil, validation("MessageType %s is not valid for algorithm %s.", in.messageType, in.algorithm)
	case len(in.message) != size:
		return nil, validation("Digest is invalid length for algorithm %s.", in.algorithm)
	case in.messageType == a.noMechanism:
		return nil, unsupported("MessageType %s is not available for algorithm %s: the HSM interface has no mechanism for it.", in.messageType, in.algorithm)
	}
	return in.message, nil
}

// verify knows the signatures of Go's crypto, and leaves others to the HSM.
func (s *Service) verify(ctx context.Context, k *key, algorithm types.SigningAlgorithmSpec, digest, signature []byte) (bool, error) {
	hash := signingAlgorithms[algorithm].hash
	switch types.KeySpec(k.Spec) {
	case types.KeySpecEccSecgP256k1, types.KeySpecMlDsa44, types.KeySpecMlDsa65, types.KeySpecMlDsa87:
		err := s.domain.VerifySignature(ctx, k.Spec, k.backing.PublicKey, string(algorithm), digest, signature)
		if errors.Is(err, hsm.ErrSignature) {
			return false, nil
		}
		if err != nil {
			return false, s.fromUse(k, "verifying", err)
		}
		return true, nil
	}
	public, err := k.publicKey()
	if err != nil {
		return false, err
	}
	switch public := public.(type) {
	case *rsa.PublicKey:
		return verifyRSA(public, algorithm, hash, digest, signature), nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(public, digest, signature), nil
	case ed25519.PublicKey:
		return verifyEd25519(public, algorithm, digest, signature), nil
	}
	return false, fmt.Errorf("the public key of %s is a %T", k.arn, public)
}

func verifyRSA(public *rsa.PublicKey, algorithm types.SigningAlgorithmSpec, hash crypto.Hash, digest, signature []byte) bool {
	if strings.HasPrefix(string(algorithm), "RSASSA_PSS_") {
		return rsa.VerifyPSS(public, hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	}
	return rsa.VerifyPKCS1v15(public, hash, digest, signature) == nil
}

// verifyEd25519 knows Ed25519 and Ed25519ph without context (RFC 8032 §5.1).
// The latter hashes what it is given by SHA-512, as AWS does with a message
// that the caller has hashed already.
func verifyEd25519(public ed25519.PublicKey, algorithm types.SigningAlgorithmSpec, message, signature []byte) bool {
	if algorithm != types.SigningAlgorithmSpecEd25519PhSha512 {
		return ed25519.Verify(public, message, signature)
	}
	hashed := sha512.Sum512(message)
	return ed25519.VerifyWithOptions(public, hashed[:], signature, &ed25519.Options{Hash: crypto.SHA512}) == nil
}

// GetPublicKey returns the public half of a key pair with what it is for.
func (s *Service) GetPublicKey(ctx context.Context, call *Call, in *awskms.GetPublicKeyInput) (*awskms.GetPublicKeyOutput, error) {
	k, err := s.authorizeKey(ctx, call, "kms:GetPublicKey", *in.KeyId, keyOrAlias)
	if err != nil {
		return nil, err
	}
	if k.spec().keyType != asymmetricKey {
		return nil, unsupported("%s key spec is %s which is not valid for GetPublicKey.", k.arn, k.Spec)
	}
	if err := s.checkGrantTokens(ctx, in.GrantTokens); err != nil {
		return nil, err
	}
	algorithms := k.algorithmLists()
	return &awskms.GetPublicKeyOutput{
		CustomerMasterKeySpec:   types.CustomerMasterKeySpec(k.Spec), // AWS still sends the deprecated twin
		EncapsulationAlgorithms: algorithms.encapsulation,
		EncryptionAlgorithms:    algorithms.encryption,
		KeyAgreementAlgorithms:  algorithms.agreement,
		KeyId:                   aws.String(k.arn),
		KeySpec:                 types.KeySpec(k.Spec),
		KeyUsage:                types.KeyUsageType(k.Usage),
		PublicKey:               k.backing.PublicKey,
		SigningAlgorithms:       algorithms.signing,
	}, nil
}
