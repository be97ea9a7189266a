package softhsmtest

import (
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// A keyIDCall is one member of one operation by which a caller names a key.
type keyIDCall struct {
	operation string
	member    string // "" for an operation that names none
	// key is what the member names; nil for an operation that names none.
	key func(*stage) *types.KeyMetadata
	// in is the rest of the request, an input of the SDK. It is asked for once
	// the key has its alias, and may bring it into the state for the call.
	in func(*stage) any
}

// keyIDCalls has a line for each operation of AWS KMS and each member by which
// it names a key or an alias. Lines of operations that do not work yet are
// there to be refused.
var keyIDCalls = []keyIDCall{
	{"CancelKeyDeletion", "KeyId", aKey, func(s *stage) any { s.doom(); return &kms.CancelKeyDeletionInput{} }},
	{"ConnectCustomKeyStore", "", nil, func(*stage) any { return &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: aws.String("cks-1")} }},
	{"CreateAlias", "AliasName", aKey, func(s *stage) any { s.unalias(); return &kms.CreateAliasInput{TargetKeyId: s.key.KeyId} }},
	{"CreateAlias", "TargetKeyId", aKey, func(s *stage) any { return &kms.CreateAliasInput{AliasName: s.newAlias()} }},
	{"CreateCustomKeyStore", "", nil, func(*stage) any { return &kms.CreateCustomKeyStoreInput{CustomKeyStoreName: aws.String("n")} }},
	{"CreateGrant", "KeyId", aKey, func(s *stage) any {
		return &kms.CreateGrantInput{GranteePrincipal: s.administrator(), Operations: []types.GrantOperation{types.GrantOperationEncrypt}}
	}},
	{"CreateKey", "", nil, func(*stage) any { return &kms.CreateKeyInput{} }},
	{"Decapsulate", "KeyId", anAgreementKey, func(*stage) any {
		return &kms.DecapsulateInput{EncapsulationAlgorithm: "ML_KEM", SharedSecretCiphertextBlob: []byte("x")}
	}},
	{"Decrypt", "KeyId", aKey, func(s *stage) any { return &kms.DecryptInput{CiphertextBlob: s.sealed(s.key)} }},
	{"DeleteAlias", "AliasName", aKey, func(*stage) any { return &kms.DeleteAliasInput{} }},
	{"DeleteCustomKeyStore", "", nil, func(*stage) any { return &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: aws.String("cks-1")} }},
	{"DeleteImportedKeyMaterial", "KeyId", anExternalKey, func(*stage) any { return &kms.DeleteImportedKeyMaterialInput{} }},
	{"DeriveSharedSecret", "KeyId", anAgreementKey, func(s *stage) any {
		return &kms.DeriveSharedSecretInput{KeyAgreementAlgorithm: "ECDH", PublicKey: publicKeyOf(s.t, s.c, anAgreementKey(s))}
	}},
	{"DescribeCustomKeyStores", "", nil, func(*stage) any { return &kms.DescribeCustomKeyStoresInput{} }},
	{"DescribeKey", "KeyId", aKey, func(*stage) any { return &kms.DescribeKeyInput{} }},
	{"DisableKey", "KeyId", aKey, func(*stage) any { return &kms.DisableKeyInput{} }},
	{"DisableKeyRotation", "KeyId", aKey, func(*stage) any { return &kms.DisableKeyRotationInput{} }},
	{"DisconnectCustomKeyStore", "", nil, func(*stage) any { return &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: aws.String("cks-1")} }},
	{"EnableKey", "KeyId", aKey, func(*stage) any { return &kms.EnableKeyInput{} }},
	{"EnableKeyRotation", "KeyId", aKey, func(*stage) any { return &kms.EnableKeyRotationInput{} }},
	{"Encapsulate", "KeyId", anAgreementKey, func(*stage) any { return &kms.EncapsulateInput{EncapsulationAlgorithm: "ML_KEM"} }},
	{"Encrypt", "KeyId", aKey, func(*stage) any { return &kms.EncryptInput{Plaintext: []byte("x")} }},
	{"GenerateDataKey", "KeyId", aKey, func(*stage) any { return &kms.GenerateDataKeyInput{KeySpec: "AES_256"} }},
	{"GenerateDataKeyPair", "KeyId", aKey, func(*stage) any { return &kms.GenerateDataKeyPairInput{KeyPairSpec: "ECC_NIST_P256"} }},
	{"GenerateDataKeyPairWithoutPlaintext", "KeyId", aKey, func(*stage) any { return &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyPairSpec: "ECC_NIST_P256"} }},
	{"GenerateDataKeyWithoutPlaintext", "KeyId", aKey, func(*stage) any { return &kms.GenerateDataKeyWithoutPlaintextInput{KeySpec: "AES_256"} }},
	{"GenerateMac", "KeyId", aMACKey, func(*stage) any { return &kms.GenerateMacInput{MacAlgorithm: "HMAC_SHA_256", Message: []byte("m")} }},
	{"GenerateRandom", "", nil, func(*stage) any { return &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8)} }},
	{"GetKeyLastUsage", "KeyId", aKey, func(*stage) any { return &kms.GetKeyLastUsageInput{} }},
	{"GetKeyPolicy", "KeyId", aKey, func(*stage) any { return &kms.GetKeyPolicyInput{} }},
	{"GetKeyRotationStatus", "KeyId", aKey, func(*stage) any { return &kms.GetKeyRotationStatusInput{} }},
	{"GetParametersForImport", "KeyId", anExternalKey, func(*stage) any {
		return &kms.GetParametersForImportInput{WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha1, WrappingKeySpec: types.WrappingKeySpecRsa2048}
	}},
	{"GetPublicKey", "KeyId", aSigningKey, func(*stage) any { return &kms.GetPublicKeyInput{} }},
	{"ImportKeyMaterial", "KeyId", anExternalKey, func(s *stage) any {
		p := parcelFor(s.t, s.c, s.key, types.AlgorithmSpecRsaesOaepSha1)
		return &kms.ImportKeyMaterialInput{ImportToken: p.token, EncryptedKeyMaterial: p.wrap(s.t, make([]byte, 32)),
			ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire}
	}},
	{"ListAliases", "KeyId", aKey, func(*stage) any { return &kms.ListAliasesInput{} }},
	{"ListGrants", "KeyId", aKey, func(*stage) any { return &kms.ListGrantsInput{} }},
	{"ListKeyPolicies", "KeyId", aKey, func(*stage) any { return &kms.ListKeyPoliciesInput{} }},
	{"ListKeyRotations", "KeyId", aKey, func(*stage) any { return &kms.ListKeyRotationsInput{} }},
	{"ListKeys", "", nil, func(*stage) any { return &kms.ListKeysInput{} }},
	{"ListResourceTags", "KeyId", aKey, func(*stage) any { return &kms.ListResourceTagsInput{} }},
	{"ListRetirableGrants", "", nil, func(s *stage) any { return &kms.ListRetirableGrantsInput{RetiringPrincipal: s.administrator()} }},
	{"PutKeyPolicy", "KeyId", aKey, func(*stage) any { return &kms.PutKeyPolicyInput{Policy: aws.String(defaultPolicy)} }},
	{"ReEncrypt", "SourceKeyId", aKey, func(s *stage) any {
		return &kms.ReEncryptInput{CiphertextBlob: s.sealed(s.key), DestinationKeyId: aKey(s).KeyId}
	}},
	{"ReEncrypt", "DestinationKeyId", aKey, func(s *stage) any { return &kms.ReEncryptInput{CiphertextBlob: s.sealed(aKey(s))} }},
	{"ReplicateKey", "KeyId", aMultiRegionKey, func(*stage) any { return &kms.ReplicateKeyInput{ReplicaRegion: aws.String(otherRegion)} }},
	{"RetireGrant", "KeyId", aKey, func(s *stage) any { return &kms.RetireGrantInput{GrantId: s.grant()} }},
	{"RevokeGrant", "KeyId", aKey, func(s *stage) any { return &kms.RevokeGrantInput{GrantId: s.grant()} }},
	{"RotateKeyOnDemand", "KeyId", aKey, func(*stage) any { return &kms.RotateKeyOnDemandInput{} }},
	{"ScheduleKeyDeletion", "KeyId", aKey, func(*stage) any { return &kms.ScheduleKeyDeletionInput{} }},
	{"Sign", "KeyId", aSigningKey, func(*stage) any { return &kms.SignInput{Message: []byte("m"), SigningAlgorithm: "ECDSA_SHA_256"} }},
	{"TagResource", "KeyId", aKey, func(*stage) any { return &kms.TagResourceInput{Tags: []types.Tag{tag("k", "v")}} }},
	{"UntagResource", "KeyId", aKey, func(*stage) any { return &kms.UntagResourceInput{TagKeys: []string{"k"}} }},
	{"UpdateAlias", "AliasName", aKey, func(s *stage) any { return &kms.UpdateAliasInput{TargetKeyId: aKey(s).KeyId} }},
	{"UpdateAlias", "TargetKeyId", aKey, func(s *stage) any { return &kms.UpdateAliasInput{AliasName: s.aliasOf(aKey(s))} }},
	{"UpdateCustomKeyStore", "", nil, func(*stage) any { return &kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: aws.String("cks-1")} }},
	{"UpdateKeyDescription", "KeyId", aKey, func(*stage) any { return &kms.UpdateKeyDescriptionInput{Description: aws.String("d")} }},
	{"UpdatePrimaryRegion", "KeyId", aReplicatedKey, func(*stage) any { return &kms.UpdatePrimaryRegionInput{PrimaryRegion: aws.String(otherRegion)} }},
	{"Verify", "KeyId", aSigningKey, func(s *stage) any {
		return &kms.VerifyInput{Message: []byte("m"), SigningAlgorithm: "ECDSA_SHA_256",
			Signature: signed(s.t, s.c, s.key, "ECDSA_SHA_256", "", []byte("m"))}
	}},
	{"VerifyMac", "KeyId", aMACKey, func(s *stage) any {
		return &kms.VerifyMacInput{MacAlgorithm: "HMAC_SHA_256", Message: []byte("m"), Mac: s.mac()}
	}},
}

// inapplicable are the operations for which SoftHSM makes no key: with a key of
// another usage they get as far as this error, whatever named the key.
var inapplicable = map[string]string{"Encapsulate": "InvalidKeyUsageException", "Decapsulate": "InvalidKeyUsageException"}
