package awsjson

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

func reflectType[T any]() reflect.Type { return reflect.TypeFor[T]() }

// FuzzDecode feeds any operation any body. What decodes must encode, and
// decode from that to the same again.
func FuzzDecode(f *testing.F) {
	ops := Operations()
	for i, op := range ops {
		f.Add(uint8(i), fixture(f, "request_snapshot/"+op.Name+".request.snap"))
	}
	for _, body := range []string{
		``, `{`, `null`, `{"KeyId":null}`, `{"KeyId":"\ud800"}`, `{"Plaintext":"a==="}`, `{"Limit":1e9}`,
		`{"EncryptionContext":{"a":null}}`, `{"KeySpec":""}`, `{"ValidTo":-1.5e3}`, `{"Tags":[{},{"TagKey":""}]}`,
	} {
		f.Add(uint8(18), []byte(body))
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		op := ops[int(which)%len(ops)].Name
		in, _ := structsOf(t, op)
		if err := Decode(body, in); err != nil {
			var serialization *SerializationError
			if !errors.As(err, &serialization) {
				t.Fatalf("err = %v, want a SerializationError", err)
			}
			return
		}
		var validation *ValidationError
		if err := Validate(op, in); err != nil && !errors.As(err, &validation) {
			t.Fatalf("err = %v, want a ValidationError", err)
		}
		encoded, err := Encode(in)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := structsOf(t, op)
		if err := Decode(encoded, again); err != nil {
			t.Fatalf("%v in %s", err, encoded)
		}
		encodedAgain, err := Encode(again)
		if err != nil || !bytes.Equal(encoded, encodedAgain) {
			t.Fatalf("%s became %s, %v", encoded, encodedAgain, err)
		}
		AppendMembers(nil, in, []string{"KeyId", "EncryptionContext", "Tags", "ValidTo"})
	})
}

var encryptBody = []byte(`{"KeyId":"1234abcd-12ab-34cd-56ef-1234567890ab","Plaintext":"aG9nZV9wYXNzd29yZGhvZ2VfcGFzc3dvcmQ=",` +
	`"EncryptionContext":{"tenant":"a","purpose":"backup"}}`)

func BenchmarkDecodeEncrypt(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if err := Decode(encryptBody, new(kms.EncryptInput)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkValidateEncrypt(b *testing.B) {
	in := new(kms.EncryptInput)
	if err := Decode(encryptBody, in); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := Validate("Encrypt", in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeGenerateDataKey(b *testing.B) {
	out := &kms.GenerateDataKeyOutput{
		KeyId:     aws.String("arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"),
		Plaintext: make([]byte, 32), CiphertextBlob: make([]byte, 95),
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encode(out); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendMembersEncrypt(b *testing.B) {
	in := new(kms.EncryptInput)
	if err := Decode(encryptBody, in); err != nil {
		b.Fatal(err)
	}
	members, dst := []string{"KeyId", "EncryptionContext", "EncryptionAlgorithm"}, make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		AppendMembers(dst, in, members)
	}
}
