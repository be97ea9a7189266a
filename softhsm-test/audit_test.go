package softhsmtest

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestRecordShape(t *testing.T) {
	d := shared(t)
	r := &recorder{}
	c := newClient(d.url, d.admin, r)
	key := createKey(t, c)
	with := map[string]string{"visible": "context"}
	must(c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte(marker), EncryptionContext: with}))(t)
	calls := r.all()
	sealed := d.records(t, "record->>'requestID' = $1", calls[1].RequestID)[0]
	if sealed.EventSource != "kms.amazonaws.com" || sealed.EventType != "AwsApiCall" || sealed.EventVersion != "1.11" ||
		sealed.AWSRegion != region || sealed.SourceIPAddress != "127.0.0.1" || !sealed.ReadOnly || len(sealed.EventID) != 36 {
		t.Errorf("record %+v", sealed)
	}
	when, err := time.Parse("2006-01-02T15:04:05Z", sealed.EventTime)
	if err != nil || time.Since(when).Abs() > time.Minute {
		t.Errorf("eventTime %q", sealed.EventTime)
	}
	if !strings.Contains(sealed.UserAgent, "aws-sdk-go-v2/") {
		t.Errorf("userAgent %q", sealed.UserAgent)
	}
	id := sealed.UserIdentity
	if id.Type != "IAMUser" || id.AccountID != account || id.AccessKeyID != d.admin.ID ||
		!strings.HasPrefix(id.PrincipalID, "AIDA") || id.ARN != "arn:aws:iam::"+account+":user/"+id.UserName {
		t.Errorf("userIdentity %+v", id)
	}
	if len(sealed.Resources) != 1 || sealed.Resources[0].ARN != *key.Arn ||
		sealed.Resources[0].AccountID != account || sealed.Resources[0].Type != "AWS::KMS::Key" {
		t.Errorf("resources %+v", sealed.Resources)
	}
	var parameters struct {
		KeyID, EncryptionAlgorithm string
		EncryptionContext          map[string]string
		Plaintext                  any
	}
	if err := json.Unmarshal(sealed.RequestParameters, &parameters); err != nil {
		t.Fatal(err)
	}
	if parameters.KeyID != *key.KeyId || parameters.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" ||
		parameters.EncryptionContext["visible"] != "context" || parameters.Plaintext != nil {
		t.Errorf("requestParameters %s", sealed.RequestParameters)
	}
	if string(sealed.ResponseElements) != "null" {
		t.Errorf("responseElements %s", sealed.ResponseElements)
	}
	made := d.records(t, "record->>'requestID' = $1", calls[0].RequestID)[0]
	if made.ReadOnly || !strings.Contains(string(made.ResponseElements), `"keyMetadata"`) ||
		!strings.Contains(string(made.ResponseElements), *key.KeyId) {
		t.Errorf("CreateKey: %+v", made)
	}
}

// Nothing secret reaches records or logs, whichever way a call ends.
func TestNoPlaintextAnywhere(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	ctx := context.Background()
	key, other := createKey(t, c), createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	wantDecrypt(t, c, blob, marker, nil)
	must(c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: other.KeyId}))(t)
	data := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256}))(t)
	random := must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: ptr(int32(32))}))(t)
	for _, bad := range []string{
		`{"KeyId":"alias/none","Plaintext":"aG9nZV9wYXNzd29yZA=="}`,
		`{"Plaintext":"aG9nZV9wYXNzd29yZA=="}`,
		`{"KeyId":7,"Plaintext":"aG9nZV9wYXNzd29yZA=="}`,
		`{"KeyId":"a","Plaintext":"aG9nZV9wYXNzd29yZA=="`,
		`{"KeyId":"a","Plaintext":"hoge_password"}`,
		`{"KeyId":"a","Plaintext":{"x":"hoge_password"}}`,
		`{"KeyId":"a","Plaintext":"aG9nZV9wYXNzd29yZA==","DryRun":"hoge_password"}`,
	} {
		d.raw(t, request{operation: "Encrypt", body: []byte(bad)})
	}
	d.raw(t, request{body: []byte("hoge_password")})
	for _, secret := range []string{marker, string(data.Plaintext), string(random.Plaintext), d.admin.Secret, userPIN} {
		d.wantNoPlaintext(t, secret)
	}
}

func ptr[T any](v T) *T { return &v }

func TestChainHolds(t *testing.T) {
	d := shared(t)
	createKey(t, d.client(t))
	d.wantChains(t)
}

// TestAuditQueries: what docs/operations.md gives an auditor to run finds who
// used a key, and a record that was altered or is missing.
func TestAuditQueries(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	key := createKey(t, d.client(t))
	for range 3 {
		encrypt(t, d.client(t), *key.KeyId, marker, nil)
	}
	must(0, s.stop())(t)
	blocks := strings.Split(string(must(os.ReadFile("../docs/operations.md"))(t)), "```sql\n")
	if len(blocks) != 3 {
		t.Fatalf("%d queries in docs/operations.md, want 2", len(blocks)-1)
	}
	tx := must(d.pool.Begin(t.Context()))(t)
	defer tx.Rollback(context.Background()) //nolint:errcheck // for the tests that read the log after this
	rows := func(query string) (n int) {
		query, _, _ = strings.Cut(query, "```")
		all := must(tx.Query(t.Context(), query))(t)
		for ; all.Next(); n++ {
		}
		must(0, all.Err())(t)
		return n
	}
	if n := rows(strings.ReplaceAll(blocks[1], "arn:aws:kms:…:key/…", *key.Arn)); n != 4 {
		t.Errorf("%d uses of a key that was made and used 3 times", n)
	}
	if n := rows(blocks[2]); n != 0 {
		t.Errorf("%d batches of a log that is whole are named", n)
	}
	must(tx.Exec(t.Context(), `UPDATE audit_batches SET records = replace(records, 'CreateKey', 'CreateKez') WHERE records LIKE '%CreateKey%'`))(t)
	if n := rows(blocks[2]); n != 1 {
		t.Errorf("%d batches named, one is altered", n)
	}
	must(tx.Exec(t.Context(), `DELETE FROM audit_batches WHERE records LIKE '%"Encrypt"%' AND first_seq = (SELECT min(first_seq) FROM audit_batches WHERE records LIKE '%"Encrypt"%')`))(t)
	if n := rows(blocks[2]); n != 2 {
		t.Errorf("%d batches named, one is altered and one is missing", n)
	}
}
