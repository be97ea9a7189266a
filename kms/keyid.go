package kms

import (
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/envelope"
)

// keyRef is a KeyId parameter taken apart: a key id or an alias name, in an
// account and region.
type keyRef struct {
	account, region string
	id              string // key id, or "" for an alias
	alias           string // "alias/…", or "" for a key id
}

// keyForms says which forms of KeyId an operation takes.
type keyForms int

const (
	keyOnly    keyForms = iota // key id, key ARN
	keyOrAlias                 // alias name and alias ARN as well
)

// parseKeyID reads a KeyId parameter of operation as the caller of call means
// it. Errors are AWS's: NotFoundException and, where the operation's model has
// it, InvalidArnException.
func (s *Service) parseKeyID(call *Call, text string, forms keyForms) (keyRef, error) {
	ref := keyRef{account: call.Principal.Account, region: call.Region}
	name := text
	if strings.HasPrefix(text, "arn:") {
		account, region, resource, err := s.parseARN(call, text)
		if err != nil {
			return keyRef{}, err
		}
		ref.account, ref.region = account, region
		switch {
		case strings.HasPrefix(resource, "key/"):
			name, forms = strings.TrimPrefix(resource, "key/"), keyOnly
		case strings.HasPrefix(resource, "alias/"):
			name = resource
		default:
			return keyRef{}, invalidARN(call, text)
		}
	}
	switch {
	case strings.HasPrefix(name, "alias/") && forms == keyOrAlias:
		ref.alias = name
	case envelope.ValidKeyID(name):
		ref.id = name
	default:
		return keyRef{}, notFound("Invalid keyId '%s'", text)
	}
	return ref, nil
}

// parseARN takes arn:partition:kms:region:account:resource apart.
func (s *Service) parseARN(call *Call, text string) (account, region, resource string, err error) {
	parts := strings.SplitN(text, ":", 6)
	if len(parts) != 6 || parts[1] != s.cfg.Partition || parts[2] != "kms" || len(parts[4]) != 12 {
		return "", "", "", invalidARN(call, text)
	}
	if parts[3] != call.Region {
		return "", "", "", notFound("Invalid arn %s", parts[3])
	}
	return parts[4], parts[3], parts[5], nil
}

func invalidARN(call *Call, text string) error {
	model, _ := awsjson.Operation(call.Operation)
	if slices.Contains(model.Errors, "InvalidArnException") {
		return &types.InvalidArnException{Message: aws.String("Invalid arn " + text)}
	}
	return notFound("Invalid arn %s", text)
}

func (s *Service) keyARN(account, region, id string) string {
	return fmt.Sprintf("arn:%s:kms:%s:%s:key/%s", s.cfg.Partition, region, account, id)
}

func (s *Service) aliasARN(account, region, name string) string {
	return fmt.Sprintf("arn:%s:kms:%s:%s:%s", s.cfg.Partition, region, account, name)
}
