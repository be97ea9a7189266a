package api

import (
	"errors"
	"net/http"

	"github.com/aws/smithy-go"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trent-kms/trent/kms"
)

// writeError is the one place where errors meet the wire. What the caller did
// wrong is HTTP 400 whatever the model says; our own failures are 500, logged
// in full and shown bare. It returns the error code sent.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, requestID string, err error) string {
	api := kms.APIError(err)
	status := http.StatusBadRequest
	var protocol *protocolError
	switch {
	case errors.As(err, &protocol):
		status = protocol.status
	case api.ErrorFault() == smithy.FaultServer:
		status = http.StatusInternalServerError
		var known *told
		if errors.As(err, &known) {
			break
		}
		s.log.Error("request failed", "requestID", requestID, "target", r.Header.Get("X-Amz-Target"), "code", api.ErrorCode(), "error", err)
	}
	if status == http.StatusRequestEntityTooLarge {
		w.Header().Set("Connection", "close") // the rest of the body is not read
	}
	w.Header().Set("X-Amzn-Errortype", api.ErrorCode())
	s.write(w, requestID, status, errorBody(api))
	return api.ErrorCode()
}

// errorBody is {"__type":…,"message":…}. AWS sends no message member where an
// error has no text, and spells it Message for AccessDeniedException.
func errorBody(api smithy.APIError) []byte {
	body := []byte(`{"__type":`)
	body = appendQuoted(body, api.ErrorCode())
	if text := api.ErrorMessage(); text != "" {
		name := `,"message":`
		if api.ErrorCode() == "AccessDeniedException" {
			name = `,"Message":`
		}
		body = appendQuoted(append(body, name...), text)
	}
	return append(body, '}')
}

// appendQuoted appends a JSON string; bytes that are not UTF-8 become U+FFFD.
func appendQuoted(dst []byte, text string) []byte {
	quoted, err := jsontext.AppendQuote(dst, []byte(text))
	if quoted == nil && err != nil {
		return append(dst, `""`...)
	}
	return quoted
}
