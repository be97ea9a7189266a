package softhsmtest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/trent-kms/trent/internal/testenv"
)

// Debian's own programs: a newer aws may stand earlier on PATH.
const (
	python = "/usr/bin/python3"
	awsCLI = "/usr/bin/aws"
)

// clientEnvironment is that of a client program: nothing but the credentials and the region.
func (d *deployment) clientEnvironment() []string {
	return []string{
		"PATH=/usr/bin:/bin", "HOME=" + d.dir, "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1", "AWS_PAGER=",
		"AWS_ACCESS_KEY_ID=" + d.admin.ID, "AWS_SECRET_ACCESS_KEY=" + d.admin.Secret,
		"AWS_DEFAULT_REGION=" + region, "AWS_EC2_METADATA_DISABLED=true",
		"TRENT_ENDPOINT=" + d.url,
	}
}

func TestBoto3(t *testing.T) {
	d := shared(t)
	python := testenv.Program(t, python)
	cmd := exec.Command(python, "-c", "import boto3")
	cmd.Env = d.clientEnvironment()
	if out, err := cmd.CombinedOutput(); err != nil {
		testenv.Missing(t, fmt.Errorf("boto3 is not installed (apt-get install python3-boto3): %s", out))
	}
	const agent = `record->>'userAgent' LIKE 'Boto3/%'`
	before := len(d.records(t, agent))
	cmd = exec.Command(python, filepath.Join("testdata", "boto3_suite.py"))
	cmd.Env = d.clientEnvironment()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal("the boto3 suite failed:", err)
	}
	said := regexp.MustCompile(`(?m)^calls (\d+)$`).FindSubmatch(out)
	if said == nil {
		t.Fatal("the suite does not say how many calls it made")
	}
	if made := len(d.records(t, agent)) - before; fmt.Sprint(made) != string(said[1]) {
		t.Errorf("%s calls left %d audit records", said[1], made)
	}
	d.wantNoPlaintext(t, marker)
}

// aws runs the AWS CLI and returns its output and its exit code.
func (d *deployment) aws(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), testenv.Program(t, awsCLI),
		append([]string{"--endpoint-url", d.url, "--output", "json", "kms"}, args...)...)
	cmd.Env = d.clientEnvironment()
	cmd.Dir = d.dir
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out, _ := cmd.Output()
	return string(out), faults.String(), cmd.ProcessState.ExitCode()
}

// awsJSON runs a command that must succeed and returns its answer.
func (d *deployment) awsJSON(t *testing.T, args ...string) map[string]any {
	t.Helper()
	stdout, stderr, code := d.aws(t, args...)
	if code != 0 {
		t.Fatalf("aws kms %s: %d\n%s", strings.Join(args, " "), code, stderr)
	}
	answer := map[string]any{}
	if stdout != "" {
		if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
			t.Fatalf("aws kms %s answered %q: %v", args[0], stdout, err)
		}
	}
	return answer
}

// awsError runs a command that must fail with AWS's error.
func (d *deployment) awsError(t *testing.T, code, operation string, args ...string) {
	t.Helper()
	_, stderr, exit := d.aws(t, args...)
	want := fmt.Sprintf("An error occurred (%s) when calling the %s operation", code, operation)
	if exit != 254 || !strings.Contains(stderr, want) {
		t.Errorf("aws kms %s: exit %d, want 254 with %q\n%s", strings.Join(args, " "), exit, want, stderr)
	}
}

func (d *deployment) file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return "fileb://" + path
}

func TestAWSCLI(t *testing.T) {
	d := shared(t)
	key := d.awsJSON(t, "create-key", "--description", "by the CLI", "--tags", "TagKey=a,TagValue=b")["KeyMetadata"].(map[string]any)
	id, arn := key["KeyId"].(string), key["Arn"].(string)
	alias := "alias/cli-" + id
	d.awsJSON(t, "create-alias", "--alias-name", alias, "--target-key-id", id)
	text := d.file(t, "text", []byte(marker))
	for _, name := range []string{id, arn, alias, "arn:aws:kms:" + region + ":" + account + ":" + alias} {
		data := d.awsJSON(t, "generate-data-key", "--key-id", name, "--key-spec", "AES_256")
		if data["KeyId"] != arn || len(decode64(t, data["Plaintext"])) != 32 {
			t.Errorf("generate-data-key answered %v", data["KeyId"])
		}
		sealed := d.awsJSON(t, "encrypt", "--key-id", name, "--plaintext", text, "--encryption-context", "a=1,b=2")
		blob := d.file(t, "blob", decode64(t, sealed["CiphertextBlob"]))
		opened := d.awsJSON(t, "decrypt", "--ciphertext-blob", blob, "--encryption-context", "b=2,a=1")
		if string(decode64(t, opened["Plaintext"])) != marker {
			t.Error("decrypt did not give the text back")
		}
		d.awsError(t, "InvalidCiphertextException", "Decrypt", "decrypt", "--ciphertext-blob", blob)
	}
	if out := d.awsJSON(t, "describe-key", "--key-id", alias)["KeyMetadata"].(map[string]any); out["Description"] != "by the CLI" {
		t.Errorf("describe-key answered %v", out)
	}
	if out := d.awsJSON(t, "list-keys", "--page-size", "2"); !strings.Contains(fmt.Sprint(out["Keys"]), id) {
		t.Error("list-keys lacks the key")
	}
	policy := d.awsJSON(t, "get-key-policy", "--key-id", id, "--policy-name", "default")
	if policy["Policy"] != defaultPolicy {
		t.Errorf("policy %v", policy["Policy"])
	}
	d.awsJSON(t, "disable-key", "--key-id", id)
	d.awsError(t, "DisabledException", "Encrypt", "encrypt", "--key-id", id, "--plaintext", text)
	d.awsJSON(t, "enable-key", "--key-id", id)
	if out := d.awsJSON(t, "schedule-key-deletion", "--key-id", id, "--pending-window-in-days", "7"); out["KeyState"] != "PendingDeletion" {
		t.Errorf("schedule-key-deletion answered %v", out)
	}
	d.awsError(t, "KMSInvalidStateException", "Encrypt", "encrypt", "--key-id", id, "--plaintext", text)
	d.awsJSON(t, "cancel-key-deletion", "--key-id", id)
	d.wantNoPlaintext(t, marker)
}

func TestAWSCLIErrors(t *testing.T) {
	d := shared(t)
	text := d.file(t, "text", []byte(marker))
	d.awsError(t, "NotFoundException", "Encrypt", "encrypt", "--key-id", "alias/nobody", "--plaintext", text)
	d.awsError(t, "NotFoundException", "DescribeKey", "describe-key", "--key-id", "00000000-0000-4000-8000-000000000000")
	d.awsError(t, "ValidationException", "GenerateRandom", "generate-random", "--number-of-bytes", "2000")
	d.awsError(t, "UnsupportedOperationException", "CreateKey", "create-key", "--custom-key-store-id", "cks-1234567890abcdef0")
	d.awsError(t, "UnsupportedOperationException", "DescribeCustomKeyStores", "describe-custom-key-stores")
	d.awsError(t, "NotFoundException", "ListGrants", "list-grants", "--key-id", "00000000-0000-4000-8000-000000000000")
	d.awsError(t, "InvalidCiphertextException", "Decrypt", "decrypt", "--ciphertext-blob", d.file(t, "junk", []byte("junk")))
	wrong := *d
	wrong.admin.Secret = strings.Repeat("x", 40)
	wrong.awsError(t, "InvalidSignatureException", "ListKeys", "list-keys")
	wrong.admin.ID = "AKIAAAAAAAAAAAAAAAAA"
	wrong.awsError(t, "UnrecognizedClientException", "ListKeys", "list-keys")
}

func decode64(t *testing.T, v any) []byte {
	t.Helper()
	text, _ := v.(string)
	return must(base64.StdEncoding.DecodeString(text))(t)
}
