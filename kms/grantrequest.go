package kms

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/go-json-experiment/json"

	"github.com/trent-kms/trent/store"
)

// AWS's limits of a grant's constraints.
const (
	maxConstraintPairs = 8
	maxConstraintValue = 384 // characters
)

// newGrant is the grant that a CreateGrant request asks for, without an id.
func (s *Service) newGrant(k *key, in *awskms.CreateGrantInput) (store.Grant, error) {
	grantee, err := s.onePrincipal("GranteePrincipal", in.GranteePrincipal, in.GranteeServicePrincipal)
	if err != nil {
		return store.Grant{}, err
	}
	retiring, err := s.onePrincipal("RetiringPrincipal", in.RetiringPrincipal, in.RetiringServicePrincipal)
	if err != nil {
		return store.Grant{}, err
	}
	if err := checkGrantOperations(k, in.Operations); err != nil {
		return store.Grant{}, err
	}
	constraints, err := grantConstraints(k, in.Constraints)
	if err != nil {
		return store.Grant{}, err
	}
	switch {
	case grantee == "":
		return store.Grant{}, validation("Specify either a GranteePrincipal or a GranteeServicePrincipal.")
	case in.GranteeServicePrincipal != nil && (in.Constraints == nil || in.Constraints.SourceArn == nil):
		return store.Grant{}, validation("A grant to a service principal needs the SourceArn constraint.")
	case in.GranteeServicePrincipal != nil && retiring == "":
		return store.Grant{}, validation("A grant to a service principal needs a RetiringPrincipal or a RetiringServicePrincipal.")
	}
	g := store.Grant{
		Name:              aws.ToString(in.Name),
		Grantee:           grantee,
		RetiringPrincipal: retiring,
		IssuingAccount:    fmt.Sprintf("arn:%s:iam::%s:root", s.cfg.Partition, k.Account),
		Operations:        joinOperations(in.Operations),
		Constraints:       constraints,
		Created:           s.now().UTC(),
	}
	g.RequestDigest, err = requestDigest(g)
	return g, err
}

// requestDigest is the same for grants that are asked for alike.
func requestDigest(g store.Grant) ([]byte, error) {
	operations := strings.Split(g.Operations, ",")
	slices.Sort(operations)
	request, err := json.Marshal([]any{g.Name, g.Grantee, g.RetiringPrincipal, g.IssuingAccount, operations, g.Constraints})
	if err != nil {
		return nil, fmt.Errorf("encoding a grant: %w", err)
	}
	sum := sha256.Sum256(request)
	return sum[:], nil
}

// joinOperations is how a grant's operations are stored: each once.
func joinOperations(operations []types.GrantOperation) string {
	var list []string
	for _, o := range operations {
		if !slices.Contains(list, string(o)) {
			list = append(list, string(o))
		}
	}
	return strings.Join(list, ",")
}

// commonGrantOperations can be granted on every key.
var commonGrantOperations = []types.GrantOperation{
	types.GrantOperationDescribeKey, types.GrantOperationCreateGrant, types.GrantOperationRetireGrant,
}

// dataKeyGrantOperations are of the keys that make data keys.
var dataKeyGrantOperations = []types.GrantOperation{
	types.GrantOperationGenerateDataKey, types.GrantOperationGenerateDataKeyWithoutPlaintext,
	types.GrantOperationGenerateDataKeyPair, types.GrantOperationGenerateDataKeyPairWithoutPlaintext,
}

// usageGrantOperations are the others, by the key's usage; GetPublicKey goes
// with every asymmetric key.
var usageGrantOperations = map[types.KeyUsageType][]types.GrantOperation{
	types.KeyUsageTypeEncryptDecrypt: {
		types.GrantOperationEncrypt, types.GrantOperationDecrypt, types.GrantOperationReEncryptFrom, types.GrantOperationReEncryptTo},
	types.KeyUsageTypeSignVerify:             {types.GrantOperationSign, types.GrantOperationVerify},
	types.KeyUsageTypeGenerateVerifyMac:      {types.GrantOperationGenerateMac, types.GrantOperationVerifyMac},
	types.KeyUsageTypeKeyAgreement:           {types.GrantOperationDeriveSharedSecret},
	types.KeyUsageTypeEncapsulateDecapsulate: {types.GrantOperationEncapsulate, types.GrantOperationDecapsulate},
}

// grantable lists the operations that a grant on k may allow.
func (k *key) grantable() []types.GrantOperation {
	list := slices.Concat(commonGrantOperations, usageGrantOperations[types.KeyUsageType(k.Usage)])
	if k.symmetric() {
		list = append(list, dataKeyGrantOperations...)
	}
	if k.spec().keyType == asymmetricKey {
		list = append(list, types.GrantOperationGetPublicKey)
	}
	return list
}

func checkGrantOperations(k *key, operations []types.GrantOperation) error {
	if len(operations) == 0 {
		return validation("A grant needs at least one operation.")
	}
	allowed := k.grantable()
	for _, o := range operations {
		if !slices.Contains(allowed, o) {
			return validation("Operation %s cannot be granted on a key of spec %s and usage %s.", o, k.Spec, k.Usage)
		}
	}
	return nil
}

// storedConstraints is AWS's GrantConstraints as JSON in a grant's row.
type storedConstraints struct {
	EncryptionContextEquals map[string]string `json:",omitempty"`
	EncryptionContextSubset map[string]string `json:",omitempty"`
	SourceArn               *string           `json:",omitempty"`
}

// grantConstraints checks constraints and returns them as they are stored.
func grantConstraints(k *key, c *types.GrantConstraints) (string, error) {
	if c == nil || len(c.EncryptionContextEquals) == 0 && len(c.EncryptionContextSubset) == 0 && c.SourceArn == nil {
		return "", nil
	}
	for _, pairs := range []map[string]string{c.EncryptionContextEquals, c.EncryptionContextSubset} {
		if len(pairs) > 0 && !k.symmetric() {
			return "", validation("Grant constraints on the encryption context are for symmetric encryption keys only.")
		}
		if len(pairs) > maxConstraintPairs {
			return "", validation("A grant constraint may have %d encryption context pairs at most.", maxConstraintPairs)
		}
		for _, value := range pairs {
			if utf8.RuneCountInString(value) > maxConstraintValue {
				return "", validation("An encryption context value in a grant constraint may have %d characters at most.", maxConstraintValue)
			}
		}
	}
	text, err := json.Marshal(storedConstraints{c.EncryptionContextEquals, c.EncryptionContextSubset, c.SourceArn}, json.Deterministic(true))
	if err != nil {
		return "", validation("Text with NUL characters or invalid UTF-8 cannot be stored.")
	}
	return string(text), nil
}

// principalPattern is the form of the ARNs of principals: accounts, users,
// roles, and sessions.
var principalPattern = regexp.MustCompile(`^arn:([a-z0-9-]+):(?:iam::[0-9]{12}:(?:root|user/.+|role/.+)|sts::[0-9]{12}:(?:assumed-role/[^/]+/[^/]+|federated-user/.+))$`)

// onePrincipal returns the one of an ARN and a service principal that is
// given, or "" if neither is. Whether there is such a principal is not looked
// at: most are made elsewhere, or later.
func (s *Service) onePrincipal(member string, arn, service *string) (string, error) {
	switch {
	case arn != nil && service != nil:
		return "", validation("Specify either a %s or a %s.", member, strings.Replace(member, "Principal", "ServicePrincipal", 1))
	case service != nil:
		return *service, nil
	case arn == nil:
		return "", nil
	}
	if parts := principalPattern.FindStringSubmatch(*arn); parts == nil || parts[1] != s.cfg.Partition {
		return "", &types.InvalidArnException{Message: aws.String("ARN does not refer to a valid principal: " + *arn)}
	}
	return *arn, nil
}
