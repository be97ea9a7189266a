package softhsmtest

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/internal/testenv"
)

// node runs a script of testdata/node and returns what it printed.
func (d *deployment) node(t *testing.T, script string, env ...string) []byte {
	t.Helper()
	program := testenv.Program(t, "node")
	dir := filepath.Join("testdata", "node")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "@aws-sdk", "client-kms")); err != nil {
		testenv.Missing(t, fmt.Errorf("the JavaScript clients are not installed (run scripts/bootstrap): %w", err))
	}
	cmd := exec.Command(program, script)
	cmd.Dir = dir
	cmd.Env = append(d.clientEnvironment(), env...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out
}

func TestJavaScriptSDK(t *testing.T) {
	d := newDeployment(t, "")
	d.serve(t)
	out := d.node(t, "kms.mjs")
	said := regexp.MustCompile(`(?m)^calls (\d+)$`).FindSubmatch(out)
	if said == nil {
		t.Fatal("the suite does not say how many calls it made")
	}
	// The corrected clocks' calls are not counted: two for each of two clocks.
	made := len(d.records(t, `record->>'userAgent' LIKE 'aws-sdk-js/3.%'`))
	if fmt.Sprint(made-4) != string(said[1]) {
		t.Errorf("%s calls and 4 with a corrected clock left %d audit records", said[1], made)
	}
	d.wantNoPlaintext(t, marker)
}

// A message of the Encryption SDK is opened by Go: its data key by Decrypt,
// and the data key is the right one if it gives the commitment that the
// message carries (AWS Encryption SDK, message format 2, suite 0x0578:
// HKDF-SHA-512 with the message id as salt).
func TestJavaScriptEncryptionSDK(t *testing.T) {
	d := shared(t)
	path := filepath.Join(t.TempDir(), "message")
	d.node(t, "esdk.mjs", "TRENT_MESSAGE="+path, "AWS_ENDPOINT_URL_KMS="+d.url)
	var message struct {
		Key                            string
		DataKey, MessageID, Commitment []byte
		Context                        map[string]string
	}
	if err := json.Unmarshal(must(os.ReadFile(path))(t), &message); err != nil {
		t.Fatal(err)
	}
	c := d.client(t)
	opened := must(c.Decrypt(context.Background(), &kms.DecryptInput{
		CiphertextBlob: message.DataKey, EncryptionContext: message.Context, KeyId: &message.Key}))(t)
	key := must(hkdf.Key(sha512.New, opened.Plaintext, message.MessageID, "COMMITKEY", 32))(t)
	if !bytes.Equal(key, message.Commitment) {
		t.Error("the data key is not the one that the message commits to")
	}
	message.Context["stage"] = "Demo"
	_, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: message.DataKey, EncryptionContext: message.Context})
	wantError[*types.InvalidCiphertextException](t, err, "")
	if n := len(d.records(t, `record->>'userAgent' LIKE '%AwsEncryptionSdkJavascript%'`)); n < 10 {
		t.Errorf("%d records name the Encryption SDK", n)
	}
	d.wantNoPlaintext(t, marker)
}
