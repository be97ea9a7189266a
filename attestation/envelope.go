package attestation

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	oidRSAESOAEP     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidMGF1          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidAES256CBC     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// Envelope seals plaintext for the environment that the document is of: a CMS
// EnvelopedData (RFC 5652 §6) under a fresh AES-256 key, which is sealed to the
// document's RSA key (RSAES-OAEP with SHA-256, RFC 3560). It copies plaintext
// and leaves no copy behind.
func (d *Document) Envelope(plaintext []byte) ([]byte, error) {
	key, iv := make([]byte, 32), make([]byte, aes.BlockSize)
	defer clear(key)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("making a content-encryption key: %w", err)
	}
	if _, err := rand.Read(iv); err != nil {
		return nil, fmt.Errorf("making an IV: %w", err)
	}
	sealedKey, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, d.publicKey, key, nil)
	if err != nil {
		return nil, fmt.Errorf("sealing a content-encryption key: %w", err)
	}
	content, err := encryptCBC(key, iv, plaintext)
	if err != nil {
		return nil, err
	}
	return marshalEnvelope(sha256.Sum256(d.spki), sealedKey, iv, content)
}

// encryptCBC pads as RFC 5652 §6.3 says, and encrypts in place, so that the
// padded copy of plaintext is gone.
func encryptCBC(key, iv, plaintext []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("making a cipher: %w", err)
	}
	padding := aes.BlockSize - len(plaintext)%aes.BlockSize
	content := make([]byte, len(plaintext)+padding)
	copy(content[copy(content, plaintext):], bytes.Repeat([]byte{byte(padding)}, padding))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(content, content)
	return content, nil
}

// marshalEnvelope writes the bytes that AWS KMS writes:
//
//	ContentInfo { envelopedData, [0] EnvelopedData {       ; indefinite lengths
//	    version 2,
//	    SET { KeyTransRecipientInfo {                      ; DER
//	        version 2, [0] SHA-256 of the SubjectPublicKeyInfo,
//	        { id-RSAES-OAEP, { [0] SHA-256, [1] { MGF1, SHA-256 } } },
//	        OCTET STRING } },
//	    EncryptedContentInfo {                             ; indefinite length
//	        data, { aes256-CBC, IV },
//	        [0] { OCTET STRING } } } }                     ; indefinite length
//
// DER throughout would be simpler, but the parser of AWS's own Nitro Enclaves
// SDK (aws_cms_parse_enveloped_data) follows just this form: it steps into the
// outer values only if their lengths are indefinite.
func marshalEnvelope(keyID [sha256.Size]byte, sealedKey, iv, content []byte) ([]byte, error) {
	var b cryptobyte.Builder
	closeContent := openIndefinite(&b, der.SEQUENCE)
	b.AddASN1ObjectIdentifier(oidEnvelopedData)
	closeExplicit := openIndefinite(&b, der.Tag(0).ContextSpecific().Constructed())
	closeEnveloped := openIndefinite(&b, der.SEQUENCE)
	b.AddASN1Int64(2)
	b.AddASN1(der.SET, func(b *cryptobyte.Builder) { addRecipient(b, keyID, sealedKey) })
	closeEncrypted := openIndefinite(&b, der.SEQUENCE)
	b.AddASN1ObjectIdentifier(oidData)
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidAES256CBC)
		b.AddASN1OctetString(iv)
	})
	closeOctets := openIndefinite(&b, der.Tag(0).ContextSpecific().Constructed())
	b.AddASN1OctetString(content)
	for _, end := range []func(){closeOctets, closeEncrypted, closeEnveloped, closeExplicit, closeContent} {
		end()
	}
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding an envelope: %w", err)
	}
	return out, nil
}

// openIndefinite begins a value of indefinite length (X.690 §8.1.3.6); the
// function that it returns ends it.
func openIndefinite(b *cryptobyte.Builder, tag der.Tag) (end func()) {
	b.AddBytes([]byte{byte(tag), 0x80})
	return func() { b.AddBytes([]byte{0, 0}) }
}

func addRecipient(b *cryptobyte.Builder, keyID [sha256.Size]byte, sealedKey []byte) {
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(2)
		b.AddASN1(der.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(keyID[:]) })
		b.AddASN1(der.SEQUENCE, addOAEP)
		b.AddASN1OctetString(sealedKey)
	})
}

// addOAEP writes RSAES-OAEP's identifier and parameters (RFC 4055 §4.1): SHA-256
// for both hashes, no label.
func addOAEP(b *cryptobyte.Builder) {
	b.AddASN1ObjectIdentifier(oidRSAESOAEP)
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(der.Tag(0).ContextSpecific().Constructed(), addSHA256)
		b.AddASN1(der.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidMGF1)
				addSHA256(b)
			})
		})
	})
}

func addSHA256(b *cryptobyte.Builder) {
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSHA256)
		b.AddASN1NULL()
	})
}
