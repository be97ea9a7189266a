package softhsmtest

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// wellFormed is a body for an operation that an administrator could send for
// the key: the members that the model requires, and a ciphertext.
func wellFormed(t *testing.T, operation, keyID string, blob []byte) []byte {
	t.Helper()
	g := newGenerator(t, operation, keyID)
	input := g.model.Operations[operation].Input
	body := g.base(t, input)
	for member, of := range g.model.Shapes[input].Members {
		if of == "CiphertextType" {
			body[member] = blob
		}
	}
	if operation == "RetireGrant" { // which wants a token, or these two
		body["KeyId"], body["GrantId"] = keyID, strings.Repeat("0", 64)
	}
	return must(json.Marshal(body))(t)
}

// A principal without rights is denied every operation, and each denial is
// recorded once.
func TestDefaultDeny(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	if err := createAlias(c, generatedAlias, *key.KeyId); err != nil {
		t.Fatal(err)
	}
	nobody := d.principal(t, "nobody", "Active")
	before := d.state(t)
	built, unbuilt := operationTable(t)
	for _, operation := range slices.Concat(built, unbuilt) {
		t.Run(operation, func(t *testing.T) {
			a := d.raw(t, request{operation: operation, body: wellFormed(t, operation, *key.KeyId, blob), key: &nobody})
			a.want(t, 400, "AccessDeniedException")
			d.wantRecord(t, a.requestID, operation, "AccessDeniedException")
			r := d.records(t, "record->>'requestID' = $1", a.requestID)[0]
			if r.UserIdentity.UserName != "nobody" || r.UserIdentity.AccessKeyID != nobody.ID {
				t.Errorf("recorded as %+v", r.UserIdentity)
			}
		})
	}
	d.wantState(t, before)
}

// A principal without rights does not learn which keys exist.
func TestDenialTellsNothing(t *testing.T) {
	d := shared(t)
	key := createKey(t, d.client(t))
	nobody := d.principal(t, "nobody-curious", "Active")
	const none = "00000000-0000-4000-8000-000000000000"
	ask := func(id string) string {
		a := d.raw(t, request{operation: "DescribeKey", body: []byte(`{"KeyId":"` + id + `"}`), key: &nobody})
		return strings.ReplaceAll(string(a.body), id, "ID")
	}
	if there, absent := ask(*key.KeyId), ask(none); there != absent {
		t.Errorf("a key that exists is denied with %s, one that does not with %s", there, absent)
	}
}

func TestInactiveAccessKey(t *testing.T) {
	d := shared(t)
	off := d.principal(t, "switched-off", "Inactive")
	_, err := newClient(d.url, off, http.DefaultTransport).ListKeys(context.Background(), nil)
	wantCode(t, err, "UnrecognizedClientException", "The security token included in the request is invalid.")
}
