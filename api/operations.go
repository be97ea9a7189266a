package api

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/kms"
)

// operation is one of AWS KMS's 56.
type operation struct {
	name string

	// serve decodes and validates the body, runs the operation, and returns
	// the body of the answer. Whatever it returns is then recorded.
	serve func(ctx context.Context, s *kms.Service, call *kms.Call, body []byte) ([]byte, error)

	built bool
}

// operations lists all operations of the service model. Beside each that is
// built stand the members of its request that the audit record shows, as
// CloudTrail does.
var operations = []operation{
	op("CancelKeyDeletion", (*kms.Service).CancelKeyDeletion, "KeyId"),
	notBuilt("ConnectCustomKeyStore"),
	op("CreateAlias", (*kms.Service).CreateAlias, "AliasName", "TargetKeyId"),
	notBuilt("CreateCustomKeyStore"),
	op("CreateGrant", (*kms.Service).CreateGrant, "KeyId", "GranteePrincipal", "RetiringPrincipal", "Operations", "Constraints", "Name", "GranteeServicePrincipal", "RetiringServicePrincipal"),
	op("CreateKey", (*kms.Service).CreateKey, "Description", "Origin", "BypassPolicyLockoutSafetyCheck", "CustomerMasterKeySpec", "KeySpec", "KeyUsage", "Policy", "Tags", "MultiRegion", "CustomKeyStoreId", "XksKeyId"),
	op("Decapsulate", (*kms.Service).Decapsulate, "KeyId", "EncapsulationAlgorithm"),
	op("Decrypt", (*kms.Service).Decrypt, "KeyId", "EncryptionAlgorithm", "EncryptionContext"),
	op("DeleteAlias", (*kms.Service).DeleteAlias, "AliasName"),
	notBuilt("DeleteCustomKeyStore"),
	op("DeleteImportedKeyMaterial", (*kms.Service).DeleteImportedKeyMaterial, "KeyId", "KeyMaterialId"),
	op("DeriveSharedSecret", (*kms.Service).DeriveSharedSecret, "KeyId", "KeyAgreementAlgorithm"),
	notBuilt("DescribeCustomKeyStores"),
	op("DescribeKey", (*kms.Service).DescribeKey, "KeyId"),
	op("DisableKey", (*kms.Service).DisableKey, "KeyId"),
	op("DisableKeyRotation", (*kms.Service).DisableKeyRotation, "KeyId"),
	notBuilt("DisconnectCustomKeyStore"),
	op("EnableKey", (*kms.Service).EnableKey, "KeyId"),
	op("EnableKeyRotation", (*kms.Service).EnableKeyRotation, "KeyId", "RotationPeriodInDays"),
	op("Encapsulate", (*kms.Service).Encapsulate, "KeyId", "EncapsulationAlgorithm"),
	op("Encrypt", (*kms.Service).Encrypt, "KeyId", "EncryptionAlgorithm", "EncryptionContext"),
	op("GenerateDataKey", (*kms.Service).GenerateDataKey, "KeyId", "KeySpec", "NumberOfBytes", "EncryptionContext"),
	op("GenerateDataKeyPair", (*kms.Service).GenerateDataKeyPair, "KeyId", "KeyPairSpec", "EncryptionContext"),
	op("GenerateDataKeyPairWithoutPlaintext", (*kms.Service).GenerateDataKeyPairWithoutPlaintext, "KeyId", "KeyPairSpec", "EncryptionContext"),
	op("GenerateDataKeyWithoutPlaintext", (*kms.Service).GenerateDataKeyWithoutPlaintext, "KeyId", "KeySpec", "NumberOfBytes", "EncryptionContext"),
	op("GenerateMac", (*kms.Service).GenerateMac, "KeyId", "MacAlgorithm"),
	op("GenerateRandom", (*kms.Service).GenerateRandom),
	op("GetKeyLastUsage", (*kms.Service).GetKeyLastUsage, "KeyId"),
	op("GetKeyPolicy", (*kms.Service).GetKeyPolicy, "KeyId", "PolicyName"),
	op("GetKeyRotationStatus", (*kms.Service).GetKeyRotationStatus, "KeyId"),
	op("GetParametersForImport", (*kms.Service).GetParametersForImport, "KeyId", "WrappingAlgorithm", "WrappingKeySpec"),
	op("GetPublicKey", (*kms.Service).GetPublicKey, "KeyId"),
	op("ImportKeyMaterial", (*kms.Service).ImportKeyMaterial, "KeyId", "ValidTo", "ExpirationModel", "ImportType", "KeyMaterialDescription"),
	op("ListAliases", (*kms.Service).ListAliases, "KeyId", "Limit", "Marker"),
	op("ListGrants", (*kms.Service).ListGrants, "KeyId", "GrantId", "GranteePrincipal", "GranteeServicePrincipal", "Limit", "Marker"),
	op("ListKeyPolicies", (*kms.Service).ListKeyPolicies, "KeyId", "Limit", "Marker"),
	op("ListKeyRotations", (*kms.Service).ListKeyRotations, "IncludeKeyMaterial", "KeyId", "Limit", "Marker"),
	op("ListKeys", (*kms.Service).ListKeys, "Limit", "Marker"),
	op("ListResourceTags", (*kms.Service).ListResourceTags, "KeyId", "Limit", "Marker"),
	op("ListRetirableGrants", (*kms.Service).ListRetirableGrants, "RetiringPrincipal", "RetiringServicePrincipal", "Limit", "Marker"),
	op("PutKeyPolicy", (*kms.Service).PutKeyPolicy, "KeyId", "PolicyName", "Policy", "BypassPolicyLockoutSafetyCheck"),
	op("ReEncrypt", (*kms.Service).ReEncrypt, "SourceKeyId", "SourceEncryptionAlgorithm", "SourceEncryptionContext", "DestinationKeyId", "DestinationEncryptionAlgorithm", "DestinationEncryptionContext"),
	op("ReplicateKey", (*kms.Service).ReplicateKey, "KeyId", "ReplicaRegion", "Policy", "BypassPolicyLockoutSafetyCheck", "Description", "Tags"),
	op("RetireGrant", (*kms.Service).RetireGrant),
	op("RevokeGrant", (*kms.Service).RevokeGrant, "KeyId", "GrantId"),
	op("RotateKeyOnDemand", (*kms.Service).RotateKeyOnDemand, "KeyId"),
	op("ScheduleKeyDeletion", (*kms.Service).ScheduleKeyDeletion, "KeyId", "PendingWindowInDays"),
	op("Sign", (*kms.Service).Sign, "KeyId", "MessageType", "SigningAlgorithm"),
	op("TagResource", (*kms.Service).TagResource, "KeyId", "Tags"),
	op("UntagResource", (*kms.Service).UntagResource, "KeyId", "TagKeys"),
	op("UpdateAlias", (*kms.Service).UpdateAlias, "AliasName", "TargetKeyId"),
	notBuilt("UpdateCustomKeyStore"),
	op("UpdateKeyDescription", (*kms.Service).UpdateKeyDescription, "KeyId", "Description"),
	op("UpdatePrimaryRegion", (*kms.Service).UpdatePrimaryRegion, "KeyId", "PrimaryRegion"),
	op("Verify", (*kms.Service).Verify, "KeyId", "MessageType", "SigningAlgorithm"),
	op("VerifyMac", (*kms.Service).VerifyMac, "KeyId", "MacAlgorithm"),
}

// op makes the table's line of an operation that is built.
func op[In, Out any](name string, run func(*kms.Service, context.Context, *kms.Call, *In) (*Out, error), recorded ...string) operation {
	model, _ := awsjson.Operation(name)
	return operation{name: name, built: true, serve: func(ctx context.Context, s *kms.Service, call *kms.Call, body []byte) ([]byte, error) {
		in := new(In)
		defer wipe(in)
		if err := awsjson.Decode(body, in); err != nil {
			return nil, err
		}
		call.Input, call.Recorded = in, recorded
		if err := awsjson.Validate(name, in); err != nil {
			return nil, err
		}
		out, err := run(s, ctx, call, in)
		if err != nil || !model.HasOutput {
			return nil, err
		}
		defer wipe(out)
		answer, err := awsjson.Encode(out)
		if err != nil {
			return nil, fmt.Errorf("encoding the answer of %s: %w", name, err)
		}
		return answer, nil
	}}
}

// wipe clears what a request or an answer holds in the clear.
func wipe(shape any) {
	switch shape := shape.(type) {
	case *awskms.EncryptInput:
		clear(shape.Plaintext)
	case *awskms.DecryptOutput:
		clear(shape.Plaintext)
	case *awskms.GenerateDataKeyOutput:
		clear(shape.Plaintext)
	case *awskms.GenerateDataKeyPairOutput:
		clear(shape.PrivateKeyPlaintext)
	case *awskms.GenerateRandomOutput:
		clear(shape.Plaintext)
	case *awskms.SignInput:
		clear(shape.Message)
	case *awskms.VerifyInput:
		clear(shape.Message)
	case *awskms.GenerateMacInput:
		clear(shape.Message)
	case *awskms.VerifyMacInput:
		clear(shape.Message)
	case *awskms.DeriveSharedSecretOutput:
		clear(shape.SharedSecret)
	}
}

// notBuilt makes the line of an operation that is not built yet. It is
// authenticated, authorised and recorded like any other.
func notBuilt(name string) operation {
	return operation{name: name, serve: func(_ context.Context, s *kms.Service, call *kms.Call, _ []byte) ([]byte, error) {
		if err := s.Authorize(call); err != nil {
			return nil, err
		}
		return nil, &types.UnsupportedOperationException{Message: aws.String(name + " is not available in this release of Trent.")}
	}}
}
