package kms

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

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

// fromHSM turns an hsm error into what the caller is told. What is left
// unmapped becomes KMSInternalException at the edge, and is logged there.
func fromHSM(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hsm.ErrInvalidCiphertext):
		return invalidCiphertext()
	case errors.Is(err, hsm.ErrBusy):
		return unmodelled("ThrottlingException", "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return internal(&types.DependencyTimeoutException{Message: aws.String("The HSM did not answer in time. Try again.")}, err)
	case errors.Is(err, hsm.ErrUnavailable):
		return internal(&types.KeyUnavailableException{Message: aws.String("The HSM is not available now. Try again.")}, err)
	}
	return err
}

// fault is an AWS error whose cause operators must see and callers must not.
type fault struct {
	smithy.APIError
	cause error
}

func internal(api smithy.APIError, cause error) error { return &fault{api, cause} }

func (f *fault) Unwrap() []error { return []error{f.APIError, f.cause} }

func (f *fault) Error() string { return f.APIError.Error() + ": " + f.cause.Error() }

// APIError returns the AWS error for err. Whatever is not one already is our
// own failure: KMSInternalException, without details.
func APIError(err error) smithy.APIError {
	var f *fault
	if errors.As(err, &f) {
		return f.APIError
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		return api
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
