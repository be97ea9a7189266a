package kms

import (
	"context"
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/hsm"
)

const (
	// importParametersLife is how long a wrapping key and its token are valid.
	importParametersLife = 24 * time.Hour

	// maxMaterialLife bounds ValidTo.
	maxMaterialLife = 365 * day
)

const importTokenLabel = "trent import token\x00"

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
	token, err := s.sealToken(ctx, importTokenLabel, importParameters{k.Account, k.Region, k.ID, algorithm, validTo, wrapping})
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
	switch {
	case errors.Is(err, hsm.ErrMaterial):
		return &types.IncorrectKeyMaterialException{Message: aws.String("The key material is not of the key's spec.")}
	case errors.Is(err, hsm.ErrArgument):
		return validation("The wrapping algorithm cannot be used with a key of this spec.")
	}
	return fromDevice(err)
}

// verifiedImport returns what the import token of a request on k says.
func (s *Service) verifiedImport(ctx context.Context, k *key, token []byte) (importParameters, error) {
	var p importParameters
	ok, err := s.openToken(ctx, importTokenLabel, token, &p)
	if err != nil {
		return p, err
	}
	if !ok || p.Account != k.Account || p.Region != k.Region || p.KeyID != k.ID {
		return p, &types.InvalidImportTokenException{Message: aws.String("The import token is not one of this key.")}
	}
	if !s.now().Before(p.ValidTo) {
		return p, &types.ExpiredImportTokenException{Message: aws.String("The import token has expired. Get a new one.")}
	}
	return p, nil
}
