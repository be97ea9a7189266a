package softhsmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A record is what the tests read of an audit record.
type record struct {
	EventVersion      string          `json:"eventVersion"`
	EventName         string          `json:"eventName"`
	EventSource       string          `json:"eventSource"`
	EventTime         string          `json:"eventTime"`
	EventID           string          `json:"eventID"`
	EventType         string          `json:"eventType"`
	AWSRegion         string          `json:"awsRegion"`
	SourceIPAddress   string          `json:"sourceIPAddress"`
	UserAgent         string          `json:"userAgent"`
	ErrorCode         string          `json:"errorCode"`
	RequestID         string          `json:"requestID"`
	ReadOnly          bool            `json:"readOnly"`
	RequestParameters json.RawMessage `json:"requestParameters"`
	ResponseElements  json.RawMessage `json:"responseElements"`
	UserIdentity      struct {
		Type, PrincipalID, ARN, AccountID, AccessKeyID, UserName string
	} `json:"userIdentity"`
	Resources []struct {
		AccountID, Type, ARN string
	} `json:"resources"`
}

// records returns the audit records that fit an SQL condition on "record".
func (d *deployment) records(t testing.TB, where string, args ...any) []record {
	t.Helper()
	rows, err := d.pool.Query(context.Background(),
		"SELECT record::text FROM audit_records WHERE "+where+" ORDER BY committed_at, host, seq", args...)
	if err != nil {
		t.Fatal(err)
	}
	texts := must(pgx.CollectRows(rows, pgx.RowTo[string]))(t)
	all := make([]record, len(texts))
	for i, text := range texts {
		if err := json.Unmarshal([]byte(text), &all[i]); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// loggedCode is how a record shows an error: CloudTrail shortens one name.
func loggedCode(code string) string {
	if code == "AccessDeniedException" {
		return "AccessDenied"
	}
	return code
}

// unrecorded are refusals that leave no record, so that a stranger cannot
// force writes.
var unrecorded = map[string]bool{
	"InvalidSignatureException": true, "UnrecognizedClientException": true,
	"MissingAuthenticationTokenException": true, "IncompleteSignatureException": true,
}

// wantRecords demands exactly one fitting record for each call.
func (d *deployment) wantRecords(t testing.TB, calls []call) {
	t.Helper()
	d.checkRecords(t, calls, false)
}

// checkRecords is wantRecords for calls that may have raced with a change:
// where that has undone a success that was recorded already, the answer is
// withheld, and the call that ran again has a second record.
func (d *deployment) checkRecords(t testing.TB, calls []call, raced bool) {
	t.Helper()
	ids := make([]string, 0, len(calls))
	for _, c := range calls {
		if c.RequestID == "" {
			t.Errorf("an answer to %s has no request id", c.Operation)
		}
		ids = append(ids, c.RequestID)
	}
	found := map[string][]record{}
	for _, r := range d.records(t, "record->>'requestID' = ANY($1)", ids) {
		found[r.RequestID] = append(found[r.RequestID], r)
	}
	for _, c := range calls {
		of := found[c.RequestID]
		if unrecorded[c.ErrorCode] {
			if len(of) != 0 {
				t.Errorf("%s refused with %s left %d audit records", c.Operation, c.ErrorCode, len(of))
			}
			continue
		}
		if raced && len(of) == 2 && of[0].ErrorCode == "" {
			of = of[1:]
		}
		if len(of) != 1 {
			t.Errorf("%s (%d %s) left %d audit records, want 1", c.Operation, c.Status, c.ErrorCode, len(of))
			continue
		}
		if of[0].EventName != c.Operation || of[0].ErrorCode != loggedCode(c.ErrorCode) {
			t.Errorf("%s, answered %q, is recorded as %s with errorCode %q", c.Operation, c.ErrorCode, of[0].EventName, of[0].ErrorCode)
		}
	}
}

func (d *deployment) wantRecord(t testing.TB, requestID, operation, code string) {
	t.Helper()
	d.wantRecords(t, []call{{Operation: operation, RequestID: requestID, ErrorCode: code}})
}

func (d *deployment) wantNoRecord(t testing.TB, requestID string) {
	t.Helper()
	if of := d.records(t, "record->>'requestID' = $1", requestID); len(of) != 0 {
		t.Errorf("a request that was not authenticated left %d audit records", len(of))
	}
}

// wantNoPlaintext searches every audit record and every log line for a secret
// in the forms in which it could slip out.
func (d *deployment) wantNoPlaintext(t testing.TB, secret string) {
	t.Helper()
	dump := d.logs(t)
	rows, err := d.pool.Query(context.Background(), "SELECT records FROM audit_batches")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range must(pgx.CollectRows(rows, pgx.RowTo[string]))(t) {
		dump = append(dump, text...)
	}
	forms := map[string]string{"plain": secret, "hex": hex.EncodeToString([]byte(secret))}
	for shift := range 3 { // base64 looks different at each offset
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret))
		forms["base64 at "+string(rune('0'+shift))] = strings.TrimRight(text, "=")[shift*2 : len(text)-4]
	}
	for form, text := range forms {
		if bytes.Contains(dump, []byte(text)) || bytes.Contains(dump, []byte(strings.ToUpper(text))) {
			t.Errorf("records or logs hold the plaintext, as %s", form)
		}
	}
}

// wantChains verifies the hash chain of every host, record by record.
func (d *deployment) wantChains(t testing.TB) {
	t.Helper()
	type batch struct {
		Host               string
		FirstSeq, LastSeq  int64
		PrevHash, LastHash []byte
		Records            string
		MAC                []byte
	}
	rows, err := d.pool.Query(context.Background(),
		"SELECT host, first_seq, last_seq, prev_hash, last_hash, records, mac FROM audit_batches ORDER BY host, first_seq")
	if err != nil {
		t.Fatal(err)
	}
	batches := must(pgx.CollectRows(rows, pgx.RowToStructByPos[batch]))(t)
	if len(batches) == 0 {
		t.Fatal("no audit batches")
	}
	heads, next := map[string][]byte{}, map[string]int64{}
	for _, b := range batches {
		hash, known := heads[b.Host]
		if known && (!bytes.Equal(hash, b.PrevHash) || b.FirstSeq != next[b.Host]) {
			t.Fatalf("batch %s/%d does not follow the one before", b.Host, b.FirstSeq)
		}
		hash = b.PrevHash
		lines := strings.Split(strings.TrimSuffix(b.Records, "\n"), "\n")
		for _, line := range lines {
			sum := sha256.Sum256(append(bytes.Clone(hash), line...))
			hash = sum[:]
		}
		if !bytes.Equal(hash, b.LastHash) || b.LastSeq-b.FirstSeq+1 != int64(len(lines)) || len(b.MAC) < 32 {
			t.Fatalf("batch %s/%d of %d records: hash chain or MAC is broken", b.Host, b.FirstSeq, len(lines))
		}
		heads[b.Host], next[b.Host] = hash, b.LastSeq+1
	}
}

// get fetches one of the admin listener's pages; status 0 = no answer.
func get(url string) (int, []byte) {
	client := http.Client{Timeout: 30 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil
	}
	return resp.StatusCode, body
}
