package kms

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// unmodelled makes the client errors that AWS KMS sends although its service
// model does not list them.
func unmodelled(code, format string, args ...any) error {
	return &smithy.GenericAPIError{Code: code, Message: fmt.Sprintf(format, args...), Fault: smithy.FaultClient}
}

func validation(format string, args ...any) error {
	return unmodelled("ValidationException", format, args...)
}

func unsupported(format string, args ...any) error {
	return &types.UnsupportedOperationException{Message: aws.String(fmt.Sprintf(format, args...))}
}

func notFound(format string, args ...any) error {
	return &types.NotFoundException{Message: aws.String(fmt.Sprintf(format, args...))}
}

func invalidState(arn, what string) error {
	return &types.KMSInvalidStateException{Message: aws.String(arn + " is " + what + ".")}
}

func limitExceeded(format string, args ...any) error {
	return &types.LimitExceededException{Message: aws.String(fmt.Sprintf(format, args...))}
}

// invalidCiphertext has no message, like AWS's.
func invalidCiphertext() error { return &types.InvalidCiphertextException{} }

// fromDevice tells the caller what the HSM lacks, by the mechanism's name.
func fromDevice(err error) error {
	var lacks *hsm.UnsupportedError
	if errors.As(err, &lacks) {
		return unsupported("%s.", lacks.Error())
	}
	return err
}

// APIError returns what the caller is told of err: the AWS error that was
// made where the fact was known, or the one that stands for a part of ours
// that failed. Anything else is KMSInternalException, without details.
func APIError(err error) smithy.APIError {
	var api smithy.APIError
	switch {
	case errors.As(err, &api):
		return api
	case errors.Is(err, hsm.ErrInvalidCiphertext):
		return &types.InvalidCiphertextException{}
	case errors.Is(err, store.ErrConflict):
		return &smithy.GenericAPIError{Code: "ThrottlingException", Message: "The resource is being changed by other requests. Try again.", Fault: smithy.FaultClient}
	case errors.Is(err, hsm.ErrBusy), errors.Is(err, audit.ErrBusy):
		return &smithy.GenericAPIError{Code: "ThrottlingException", Message: "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.", Fault: smithy.FaultClient}
	case errors.Is(err, hsm.ErrUnavailable):
		return &types.KeyUnavailableException{Message: aws.String("The HSM is not available now. Try again.")}
	case errors.Is(err, hsm.ErrNoGeneration): // a member that was lost held it, or one that is not configured
		return &types.KeyUnavailableException{Message: aws.String("No HSM that holds the key is available now. Try again.")}
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrUnfit):
		return &types.DependencyTimeoutException{Message: aws.String("The database is not available now. Try again.")}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &types.DependencyTimeoutException{Message: aws.String("The call was not done in time. Try again.")}
	}
	return &types.KMSInternalException{Message: aws.String("An internal error occurred. Try again; if it lasts, ask the operator to look up this request id in the log.")}
}

// fromCommit maps what a failed change means for the caller.
func fromCommit(err error) error {
	var quota *store.ErrQuota
	if errors.As(err, &quota) {
		return limitExceeded("The limit of %s has been reached.", quota.What)
	}
	return err
}
