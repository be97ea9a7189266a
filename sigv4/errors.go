package sigv4

import (
	"errors"
	"fmt"
	"time"

	"github.com/aws/smithy-go"
)

// ErrUnknownAccessKey is what Config.SigningKey returns (or wraps) for an
// access key id that does not exist or is not active.
var ErrUnknownAccessKey = errors.New("unknown or inactive access key")

func clientError(code, format string, args ...any) error {
	return &smithy.GenericAPIError{Code: code, Message: fmt.Sprintf(format, args...), Fault: smithy.FaultClient}
}

func missingToken() error {
	return clientError("MissingAuthenticationTokenException", "Missing Authentication Token")
}

func incomplete(format string, args ...any) error {
	return clientError("IncompleteSignatureException", format, args...)
}

func invalid(format string, args ...any) error {
	return clientError("InvalidSignatureException", format, args...)
}

func unrecognized() error {
	return clientError("UnrecognizedClientException", "The security token included in the request is invalid.")
}

func mismatch() error {
	return invalid("The request signature we calculated does not match the signature you provided. " +
		"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
}

// skew is how far a signature's time may be from now, either way.
const skew = 5 * time.Minute

// checkSkew uses the texts by which clients know that their clock is wrong.
func checkSkew(signed, now time.Time) error {
	minutes := func() string { return fmt.Sprintf("%g min.", skew.Minutes()) }
	if oldest := now.Add(-skew); signed.Before(oldest) {
		return invalid("Signature expired: %s is now earlier than %s (%s - %s)",
			signed.Format(basicFormat), oldest.Format(basicFormat), now.Format(basicFormat), minutes())
	}
	if newest := now.Add(skew); signed.After(newest) {
		return invalid("Signature not yet current: %s is still later than %s (%s + %s)",
			signed.Format(basicFormat), newest.Format(basicFormat), now.Format(basicFormat), minutes())
	}
	return nil
}
