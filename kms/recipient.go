package kms

import (
	"encoding/hex"
	"errors"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trent-kms/trent/attestation"
)

// recipient is the environment that a call's answer is for, if it names one.
// It belongs to its Call.
type recipient struct {
	info *types.RecipientInfo

	// verified is true once document and refusal have been found out, which
	// is when they are first asked for.
	verified bool
	document *attestation.Document
	refusal  error
}

// attested returns what the call's attestation document says, nil if the call
// has none. It may be asked before the call is authorised, and as often as
// needed; it is verified once, at the time of the first question.
func (s *Service) attested(call *Call) (*attestation.Document, error) {
	r := &call.recipient
	if r.info != nil && !r.verified {
		r.document, r.refusal = s.verifyRecipient(r.info)
		r.verified = true
	}
	return r.document, r.refusal
}

func (s *Service) verifyRecipient(info *types.RecipientInfo) (*attestation.Document, error) {
	switch {
	case s.cfg.AttestationRoots == nil:
		return nil, unsupported("Recipient is not available: this deployment trusts no attestation root. The operator can name some (attestation-roots).")
	case info.AttestationDocument == nil:
		return nil, validation("Recipient: AttestationDocument is required.")
	case info.KeyEncryptionAlgorithm != types.KeyEncryptionMechanismRsaesOaepSha256:
		return nil, validation("Recipient: KeyEncryptionAlgorithm is required.")
	}
	document, err := s.cfg.AttestationRoots.Verify(info.AttestationDocument, s.now())
	var refusal *attestation.Refusal
	if errors.As(err, &refusal) {
		s.log.Debug("refusing an attestation document", "error", err)
		return nil, validation("The attestation document is not valid: %s.", refusal.Reason)
	}
	return document, err
}

// answerTo turns the plaintext of an answer into what the caller is to get:
// the plaintext itself, or, for a call that names a recipient, the same sealed
// for that recipient, and the plaintext wiped.
func (s *Service) answerTo(call *Call, plaintext []byte) (open, sealed []byte, err error) {
	if call.recipient.info == nil {
		return plaintext, nil, nil
	}
	defer clear(plaintext)
	document, err := s.attested(call)
	if err != nil {
		return nil, nil, err
	}
	sealed, err = document.Envelope(plaintext)
	return nil, sealed, err
}

// materialFor is the material id of an answer; AWS leaves it out where there
// is a recipient.
func (call *Call) materialFor(id *string) *string {
	if call.recipient.info != nil {
		return nil
	}
	return id
}

// The PCRs that CloudTrail shows, by the kind of document.
var (
	enclavePCRs  = []int{1, 2, 3, 4, 8} // PCR0 is the image digest
	nitroTPMPCRs = []int{4, 7, 8, 9, 16, 23}
)

// additional is the additionalEventData of the call's audit record.
func (call *Call) additional() jsontext.Value {
	d := call.recipient.document
	if d == nil {
		return call.extra
	}
	data := []byte(`{`)
	if len(call.extra) > len(`{}`) {
		data = append(append(data[:0], call.extra[:len(call.extra)-1]...), ',')
	}
	data = append(data, `"recipient":`...)
	shown := stringMember("attestationDocumentModuleId", d.ModuleID)
	data = append(data, shown[:len(shown)-1]...)
	show := func(name string, pcr int) {
		if value, ok := d.PCRs[pcr]; ok {
			data = append(data, `,"attestationDocument`+name+`":"`+hex.EncodeToString(value)+`"`...)
		}
	}
	if d.NitroTPM {
		for _, pcr := range nitroTPMPCRs {
			show("NitroTPMPCR"+strconv.Itoa(pcr), pcr)
		}
	} else {
		show("EnclaveImageDigest", 0)
		for _, pcr := range enclavePCRs {
			show("EnclavePCR"+strconv.Itoa(pcr), pcr)
		}
	}
	return append(data, "}}"...)
}
