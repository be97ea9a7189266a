package kms

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/go-json-experiment/json"

	"github.com/trent-kms/trent/store"
)

// policyName is the one name that a key policy can have.
const policyName = "default"

// maxPolicySize is AWS's quota in bytes; the model allows more characters.
const maxPolicySize = 32_768

// defaultPolicy is the policy, to the letter, that AWS gives a key which is
// created without one: the account decides through its own principals.
func (s *Service) defaultPolicy(account string) string {
	return fmt.Sprintf(`{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:%s:iam::%s:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`, s.cfg.Partition, account)
}

// checkPolicy returns the policy to store. Only what says the same as the
// default policy is accepted while policies are not evaluated: a policy that
// is stored but not enforced would be a lie.
func (s *Service) checkPolicy(account string, policy *string) (string, error) {
	if policy == nil {
		return s.defaultPolicy(account), nil
	}
	text := *policy
	if len(text) > maxPolicySize {
		return "", limitExceeded("A key policy may have %d bytes at most.", maxPolicySize)
	}
	var document any
	if err := json.Unmarshal([]byte(text), &document); err != nil { // duplicate names included
		return "", malformedPolicy("The policy is not valid JSON.")
	}
	members, isObject := document.(map[string]any)
	if !isObject {
		return "", malformedPolicy("The policy is not a JSON object.")
	}
	if !s.saysDefault(account, members) {
		return "", unsupported("Key policies other than the default one are not evaluated yet, so they are not accepted. Leave Policy out, or give the default policy.")
	}
	return text, nil
}

func malformedPolicy(text string) error {
	return &types.MalformedPolicyDocumentException{Message: aws.String(text)}
}

// saysDefault reports whether a policy means just what the default one does;
// its Id and Sid are free.
func (s *Service) saysDefault(account string, policy map[string]any) bool {
	if !onlyMembers(policy, "Version", "Id", "Statement") {
		return false
	}
	version, isText := policy["Version"].(string)
	if !isText || (version != "2012-10-17" && version != "2008-10-17") || !optionalText(policy, "Id") {
		return false
	}
	statement, isObject := single(policy["Statement"]).(map[string]any)
	if !isObject || !onlyMembers(statement, "Sid", "Effect", "Principal", "Action", "Resource") || !optionalText(statement, "Sid") {
		return false
	}
	principal, isObject := statement["Principal"].(map[string]any)
	if !isObject || !onlyMembers(principal, "AWS") {
		return false
	}
	root := fmt.Sprintf("arn:%s:iam::%s:root", s.cfg.Partition, account)
	named := single(principal["AWS"])
	action, isText := single(statement["Action"]).(string)
	return isText && strings.EqualFold(action, "kms:*") &&
		statement["Effect"] == "Allow" &&
		(named == root || named == account) &&
		single(statement["Resource"]) == "*"
}

func optionalText(object map[string]any, name string) bool {
	value, present := object[name]
	_, isText := value.(string)
	return !present || isText
}

func onlyMembers(object map[string]any, allowed ...string) bool {
	for name := range object {
		if !slices.Contains(allowed, name) {
			return false
		}
	}
	return true
}

// single unpacks a one-element array: policies allow both forms everywhere.
// Nothing else equals what saysDefault compares with.
func single(value any) any {
	switch v := value.(type) {
	case []any:
		if len(v) == 1 {
			return v[0]
		}
		return nil
	case string, map[string]any:
		return v
	}
	return nil
}

// GetKeyPolicy returns a key's policy as it was given.
func (s *Service) GetKeyPolicy(ctx context.Context, call *Call, in *awskms.GetKeyPolicyInput) (*awskms.GetKeyPolicyOutput, error) {
	if err := s.refresh(ctx, call); err != nil {
		return nil, err
	}
	k, err := s.authorizeKey(ctx, call, "kms:GetKeyPolicy", *in.KeyId, keyOnly)
	if err != nil {
		return nil, err
	}
	if err := checkPolicyName(in.PolicyName); err != nil {
		return nil, err
	}
	return &awskms.GetKeyPolicyOutput{Policy: aws.String(k.Policy), PolicyName: aws.String(policyName)}, nil
}

// ListKeyPolicies lists the names of a key's policies: there is one.
func (s *Service) ListKeyPolicies(ctx context.Context, call *Call, in *awskms.ListKeyPoliciesInput) (*awskms.ListKeyPoliciesOutput, error) {
	if err := s.refresh(ctx, call); err != nil {
		return nil, err
	}
	if _, err := s.authorizeKey(ctx, call, "kms:ListKeyPolicies", *in.KeyId, keyOnly); err != nil {
		return nil, err
	}
	if in.Marker != nil { // there is no second page
		return nil, invalidMarker()
	}
	return &awskms.ListKeyPoliciesOutput{PolicyNames: []string{policyName}}, nil
}

// PutKeyPolicy replaces a key's policy.
func (s *Service) PutKeyPolicy(ctx context.Context, call *Call, in *awskms.PutKeyPolicyInput) (*awskms.PutKeyPolicyOutput, error) {
	_, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		if err := checkPolicyName(in.PolicyName); err != nil {
			return err
		}
		policy, err := s.checkPolicy(k.Account, in.Policy)
		k.Policy = policy
		return err
	})
	return &awskms.PutKeyPolicyOutput{}, err
}

func checkPolicyName(name *string) error {
	if name != nil && *name != policyName {
		return notFound("No such policy exists")
	}
	return nil
}
