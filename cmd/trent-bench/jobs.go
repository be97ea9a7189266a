package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/trent-kms/trent/hsm"
)

type credentials struct{ id, secret string }

// bareJob is the request that Encrypt would be, to the bare server.
var bareJob = job{name: "bare net/http", wanted: []byte("CiphertextBlob"), request: func(t *target, _ int) ([]byte, error) {
	return t.signed("Encrypt", []byte(`{"KeyId":"00000000-0000-4000-8000-000000000000","Plaintext":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
}}

// signed is a whole request in the SDK's form, signed now by the SDK's own
// signer: good for five minutes.
func (t *target) signed(operation string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+t.address+"/", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "TrentService."+operation)
	req.Header.Set("User-Agent", "trent-bench")
	sum := sha256.Sum256(body)
	who := aws.Credentials{AccessKeyID: t.credentials.id, SecretAccessKey: t.credentials.secret}
	err = v4.NewSigner().SignHTTP(context.Background(), who, req, hex.EncodeToString(sum[:]), "kms", region, time.Now())
	if err != nil {
		return nil, fmt.Errorf("signing a request: %w", err)
	}
	var wire bytes.Buffer
	if err := req.Write(&wire); err != nil {
		return nil, fmt.Errorf("writing a request: %w", err)
	}
	return wire.Bytes(), nil
}

// call makes one request outside of any measurement.
func (t *target) call(ctx context.Context, operation string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding a request: %w", err)
	}
	wire, err := t.signed(operation, text)
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.address)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer conn.Close() //nolint:errcheck // one request, answered
	if _, err := conn.Write(wire); err != nil {
		return fmt.Errorf("sending %s: %w", operation, err)
	}
	status, content, err := readWhole(conn)
	if err != nil {
		return fmt.Errorf("reading the answer to %s: %w", operation, err)
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s answered %d: %s", operation, status, content)
	}
	if err := json.Unmarshal(content, answer); err != nil {
		return fmt.Errorf("decoding the answer to %s: %w", operation, err)
	}
	return nil
}

func readWhole(r io.Reader) (int, []byte, error) {
	body := make([]byte, 64<<10)
	status, n, err := readAnswer(bufio.NewReader(r), body)
	return status, body[:max(n, 0)], err
}

// makeJobs makes a key and the requests to use it.
func (t *target) makeJobs(ctx context.Context) error {
	var made struct{ KeyMetadata struct{ KeyId string } }
	if err := t.call(ctx, "CreateKey", map[string]any{}, &made); err != nil {
		return err
	}
	id := made.KeyMetadata.KeyId
	text := bytes.Repeat([]byte{7}, 32)
	seal := map[string]any{"KeyId": id, "Plaintext": text}
	t.jobs = []job{
		{name: "Encrypt", aimed: true, wanted: []byte(`"CiphertextBlob":"`), request: same("Encrypt", seal)},
		// Each connection has a ciphertext of its own, and every plaintext is
		// compared.
		{name: "Decrypt", aimed: true, wanted: []byte(`"Plaintext":"` + base64.StdEncoding.EncodeToString(text) + `"`), request: func(t *target, _ int) ([]byte, error) {
			var sealed struct{ CiphertextBlob []byte }
			if err := t.call(ctx, "Encrypt", seal, &sealed); err != nil {
				return nil, err
			}
			return same("Decrypt", map[string]any{"CiphertextBlob": sealed.CiphertextBlob})(t, 0)
		}},
		{name: "GenerateDataKey", aimed: true, wanted: []byte(`"Plaintext":"`), request: same("GenerateDataKey", map[string]any{"KeyId": id, "KeySpec": "AES_256"})},
	}
	return t.makeKeyJobs(ctx, id)
}

// makeKeyJobs adds the requests that use keys of other specs.
func (t *target) makeKeyJobs(ctx context.Context, id string) error {
	message := bytes.Repeat([]byte{7}, 32)
	for _, j := range keyJobs {
		operation, _, _ := strings.Cut(j.name, " ")
		body, wanted := map[string]any{"KeyId": id, "KeyPairSpec": j.spec}, "PrivateKeyPlaintext"
		if j.algorithm != "" {
			var made struct{ KeyMetadata struct{ KeyId string } }
			usage := map[hsm.Use]string{hsm.UseSign: "SIGN_VERIFY", hsm.UseMAC: "GENERATE_VERIFY_MAC"}[j.use]
			if err := t.call(ctx, "CreateKey", map[string]any{"KeySpec": j.spec, "KeyUsage": usage}, &made); err != nil {
				return err
			}
			body = map[string]any{"KeyId": made.KeyMetadata.KeyId, "Message": message, "SigningAlgorithm": j.algorithm}
			if wanted = "Signature"; j.use == hsm.UseMAC {
				body = map[string]any{"KeyId": made.KeyMetadata.KeyId, "Message": message, "MacAlgorithm": j.algorithm}
				wanted = "Mac"
			}
		}
		t.jobs = append(t.jobs, job{name: j.name, wanted: []byte(`"` + wanted + `":"`), request: same(operation, body), only: callers})
	}
	return nil
}

func same(operation string, body map[string]any) func(*target, int) ([]byte, error) {
	return func(t *target, _ int) ([]byte, error) {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding a request: %w", err)
		}
		return t.signed(operation, text)
	}
}
