package attestation

import (
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

// A signed document is a COSE_Sign1 (RFC 9052 §4.2), with its tag or without:
//
//	[ protected   : bstr, of { 1 (alg) : -35 (ES384) }
//	, unprotected : {}
//	, payload     : bstr .size (1..16384)
//	, signature   : bstr .size 96 ]
//
// and its payload, in the words of AWS's specification of it:
//
//	{ module_id   : text                   ; not empty
//	, digest      : "SHA384"
//	, timestamp   : uint                   ; ms since 1970
//	, pcrs        : { 1*32 index => pcr }  ; NitroTPM: nitrotpm_pcrs
//	, certificate : cert
//	, cabundle    : [ 1* cert ]            ; the root first
//	, ? public_key : bytes .size (1..1024) ; these three may be null
//	, ? user_data  : bytes .size (0..512)
//	, ? nonce      : bytes .size (0..512) }
//
//	index = 0..31, pcr = bytes .size (32/48/64), cert = bytes .size (1..1024)
//
// Enclaves send maps of indefinite length in the payload.
const (
	maxPayload     = 16384
	maxSigned      = maxPayload + 128 // tag, headers, lengths, signature
	signatureSize  = 96
	maxModuleID    = 512 // AWS gives no figure
	maxPCRs        = 32
	maxCertificate = 1024
	maxBundle      = 16
	maxPublicKey   = 1024
	maxUserData    = 512

	// lastTimestamp is the end of the year 9999.
	lastTimestamp = 253402300799999

	// tagged is how a COSE_Sign1 with its tag begins.
	tagged = 0xd2
)

// parseMessage takes a COSE_Sign1 apart that has the headers of a document.
func parseMessage(signed []byte) (*cose.Sign1Message, error) {
	if len(signed) == 0 || len(signed) > maxSigned {
		return nil, refuse(fmt.Sprintf("it has not 1 to %d bytes", maxSigned), nil)
	}
	var message cose.Sign1Message
	var err error
	if signed[0] == tagged {
		err = message.UnmarshalCBOR(signed)
	} else {
		err = (*cose.UntaggedSign1Message)(&message).UnmarshalCBOR(signed)
	}
	if err != nil {
		return nil, refuse("it is not a COSE_Sign1", err)
	}
	algorithm, err := message.Headers.Protected.Algorithm()
	if err != nil || algorithm != cose.AlgorithmES384 {
		return nil, refuse("its algorithm is not ES384", err)
	}
	if len(message.Headers.Protected) != 1 || len(message.Headers.Unprotected) != 0 {
		return nil, refuse("it has headers other than the algorithm", nil)
	}
	if len(message.Payload) == 0 || len(message.Payload) > maxPayload {
		return nil, refuse(fmt.Sprintf("its payload has not 1 to %d bytes", maxPayload), nil)
	}
	if len(message.Signature) != signatureSize {
		return nil, refuse("its signature is not of ES384", nil)
	}
	return &message, nil
}

// payload is the CBOR of a document. Byte strings are cbor.ByteString, which
// unlike []byte takes nothing else.
type payload struct {
	ModuleID     string                     `cbor:"module_id"`
	Digest       string                     `cbor:"digest"`
	Timestamp    uint64                     `cbor:"timestamp"`
	PCRs         map[uint64]cbor.ByteString `cbor:"pcrs"`
	NitroTPMPCRs map[uint64]cbor.ByteString `cbor:"nitrotpm_pcrs"`
	Certificate  cbor.ByteString            `cbor:"certificate"`
	CABundle     []cbor.ByteString          `cbor:"cabundle"`
	PublicKey    cbor.ByteString            `cbor:"public_key"`
	UserData     cbor.ByteString            `cbor:"user_data"`
	Nonce        cbor.ByteString            `cbor:"nonce"`
}

var decoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		MaxNestedLevels:   4,
		MaxArrayElements:  maxBundle,
		MaxMapPairs:       maxPCRs,
	}.DecMode()
	if err != nil {
		panic(err) // of constants
	}
	return mode
}()

func parsePayload(encoded []byte) (*payload, error) {
	var p payload
	if err := decoding.Unmarshal(encoded, &p); err != nil {
		return nil, refuse("its payload is not what a Nitro enclave writes", err)
	}
	for _, rule := range []struct {
		holds  bool
		member string
	}{
		{p.ModuleID != "" && len(p.ModuleID) <= maxModuleID, "module_id"},
		{p.Digest == "SHA384", "digest"},
		{p.Timestamp > 0 && p.Timestamp <= lastTimestamp, "timestamp"},
		{(p.PCRs == nil) != (p.NitroTPMPCRs == nil) && validPCRs(p.pcrs()), "pcrs"},
		{validCertificates(p.Certificate), "certificate"},
		{len(p.CABundle) > 0 && validCertificates(p.CABundle...), "cabundle"},
		{len(p.PublicKey) <= maxPublicKey, "public_key"},
		{len(p.UserData) <= maxUserData, "user_data"},
		{len(p.Nonce) <= maxUserData, "nonce"},
	} {
		if !rule.holds {
			return nil, refuse("its "+rule.member+" is missing or out of bounds", nil)
		}
	}
	return &p, nil
}

func validPCRs(pcrs map[uint64]cbor.ByteString) bool {
	for index, value := range pcrs {
		if n := len(value); index >= maxPCRs || n != 32 && n != 48 && n != 64 {
			return false
		}
	}
	return len(pcrs) > 0
}

func validCertificates(certificates ...cbor.ByteString) bool {
	for _, der := range certificates {
		if len(der) == 0 || len(der) > maxCertificate {
			return false
		}
	}
	return true
}

// pcrs are the measurements, whichever of the two they are.
func (p *payload) pcrs() map[uint64]cbor.ByteString {
	if p.NitroTPMPCRs != nil {
		return p.NitroTPMPCRs
	}
	return p.PCRs
}

func (p *payload) bundle() [][]byte {
	var bundle [][]byte
	for _, der := range p.CABundle {
		bundle = append(bundle, der.Bytes())
	}
	return bundle
}

func (p *payload) document() *Document {
	d := &Document{
		ModuleID: p.ModuleID,
		NitroTPM: p.NitroTPMPCRs != nil,
		PCRs:     map[int][]byte{},
		Made:     time.UnixMilli(int64(p.Timestamp)).UTC(),
		UserData: p.UserData.Bytes(),
		Nonce:    p.Nonce.Bytes(),
		spki:     p.PublicKey.Bytes(),
	}
	for index, value := range p.pcrs() {
		d.PCRs[int(index)] = value.Bytes()
	}
	return d
}
