package softhsmtest

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Every byte of a ciphertext is authenticated, and so is its length.
func TestTamperedCiphertext(t *testing.T) {
	d := shared(t)
	c := newClient(d.url, d.admin, http.DefaultTransport)
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	refused := func(what string, blob []byte) {
		t.Helper()
		_, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: blob})
		switch code := errorCode(err); code {
		case "InvalidCiphertextException":
		case "AccessDeniedException": // the key id in it names no key now
			if !strings.Contains(err.Error(), "The ciphertext refers to a customer master key that does not exist") {
				t.Errorf("%s: %v", what, err)
			}
		case "ValidationException":
			if len(blob) != 0 {
				t.Errorf("%s: %v", what, err)
			}
		default:
			t.Errorf("%s: %v, want InvalidCiphertextException", what, err)
		}
	}
	for i := range blob {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			bad := append([]byte(nil), blob...)
			bad[i] ^= flip
			refused("flipped byte", bad)
		}
	}
	for n := range blob {
		refused("cut off", blob[:n])
	}
	refused("longer", append(append([]byte(nil), blob...), 0))
	refused("twice", append(append([]byte(nil), blob...), blob...))
	refused("front cut", blob[1:])
	other := encrypt(t, c, *createKey(t, c).KeyId, marker, nil)
	refused("other key's head", append(append([]byte(nil), other[:len(other)/2]...), blob[len(blob)/2:]...))
	wantDecrypt(t, c, blob, marker, nil)
}

// A victim is a key with an alias and an access key of its own, made for one
// row to be altered behind Trent's back.
type victim struct {
	id, other string // other is a healthy key
	alias     string
	blob      []byte
	user      secretKey
}

// tamperings alter one row each. $1 is the victim's key id, its alias or its
// access key, as the statement needs; uses must all be refused afterwards.
var tamperings = []struct {
	name, table, sql string
	arg              func(victim) string
	use              func(context.Context, *kms.Client, victim) error
}{
	{"EKT", "backing_keys", `UPDATE backing_keys SET ekt = set_byte(ekt, length(ekt)-1, get_byte(ekt, length(ekt)-1) # 1) WHERE key_id = $1`, keyOf, useEncrypt},
	{"EKT, for Decrypt", "backing_keys", `UPDATE backing_keys SET ekt = set_byte(ekt, length(ekt)-1, get_byte(ekt, length(ekt)-1) # 1) WHERE key_id = $1`, keyOf, useDecrypt},
	{"EKT of another key", "backing_keys", `UPDATE backing_keys SET ekt = (SELECT ekt FROM backing_keys WHERE key_id <> $1 LIMIT 1) WHERE key_id = $1`, keyOf, useEncrypt},
	{"material id", "backing_keys", `UPDATE backing_keys SET material_id = repeat('0', 64) WHERE key_id = $1`, keyOf, useEncrypt},
	{"policy", "keys", `UPDATE keys SET policy = replace(policy, 'Allow', 'Deny') WHERE id = $1`, keyOf, usePolicy},
	{"policy, for Encrypt", "keys", `UPDATE keys SET policy = replace(policy, 'Allow', 'Deny') WHERE id = $1`, keyOf, useEncrypt},
	{"state", "keys", `UPDATE keys SET state = 'Disabled' WHERE id = $1`, keyOf, useEncrypt},
	{"state, for EnableKey", "keys", `UPDATE keys SET state = 'Disabled' WHERE id = $1`, keyOf, useEnable},
	{"description", "keys", `UPDATE keys SET description = 'x' WHERE id = $1`, keyOf, useDescribe},
	{"tags", "keys", `UPDATE keys SET tags = '[{"Key":"a","Value":"b"}]' WHERE id = $1`, keyOf, useTags},
	{"row version", "keys", `UPDATE keys SET version = version + 1 WHERE id = $1`, keyOf, useEncrypt},
	{"due date", "keys", `UPDATE keys SET deletion_date = now() - interval '1 day', state = 'PendingDeletion', pending_window_in_days = 7 WHERE id = $1`, keyOf, useDescribe},
	{"MAC", "keys", `UPDATE keys SET mac = set_byte(mac, 0, get_byte(mac, 0) # 1) WHERE id = $1`, keyOf, useEncrypt},
	{"no MAC", "keys", `UPDATE keys SET mac = '' WHERE id = $1`, keyOf, useEncrypt},
	{"MAC generation", "keys", `UPDATE keys SET mac_generation = 0 WHERE id = $1`, keyOf, useEncrypt},
	{"alias", "aliases", `UPDATE aliases SET key_id = (SELECT id FROM keys WHERE region = aliases.region AND id <> aliases.key_id LIMIT 1) WHERE name = $1`, aliasOf, useAlias},
	{"budget", "encryption_budgets", `UPDATE encryption_budgets SET reserved = 0 WHERE backing_key IN (SELECT id FROM backing_keys WHERE key_id = $1)`, keyOf, nil},
	{"access key's owner", "access_keys", `UPDATE access_keys SET principal_id = (SELECT id FROM principals WHERE admin LIMIT 1) WHERE id = $1`, userOf, useUser},
	{"access key's status", "access_keys", `UPDATE access_keys SET status = 'active' WHERE id = $1`, userOf, useUser},
	{"administrator", "principals", `UPDATE principals SET admin = true WHERE id = (SELECT principal_id FROM access_keys WHERE id = $1)`, userOf, useUser},
}

func keyOf(v victim) string   { return v.id }
func aliasOf(v victim) string { return v.alias }
func userOf(v victim) string  { return v.user.ID }

func useEncrypt(ctx context.Context, c *kms.Client, v victim) error {
	_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &v.id, Plaintext: []byte("x")})
	return err
}

func useDecrypt(ctx context.Context, c *kms.Client, v victim) error {
	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: v.blob})
	return err
}

func usePolicy(ctx context.Context, c *kms.Client, v victim) error {
	_, err := c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &v.id})
	return err
}

func useEnable(ctx context.Context, c *kms.Client, v victim) error {
	_, err := c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &v.id})
	return err
}

func useDescribe(ctx context.Context, c *kms.Client, v victim) error {
	_, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &v.id})
	return err
}

func useTags(ctx context.Context, c *kms.Client, v victim) error {
	_, err := c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: &v.id})
	return err
}

func useAlias(ctx context.Context, c *kms.Client, v victim) error {
	_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &v.alias, Plaintext: []byte("x")})
	return err
}

// useUser is never called with c: the victim's own key signs.
func useUser(ctx context.Context, c *kms.Client, v victim) error {
	own := kms.New(c.Options(), func(o *kms.Options) { o.Credentials = v.user })
	_, err := own.ListKeys(ctx, nil)
	return err
}

// makeVictims makes one victim per tampering; their caches are warm.
func makeVictims(t *testing.T, d *deployment, c *kms.Client) []victim {
	t.Helper()
	var all []victim
	other := *createKey(t, c).KeyId
	for i := range tamperings {
		key := createKey(t, c)
		v := victim{id: *key.KeyId, other: other, alias: "alias/victim-" + *key.KeyId}
		if err := createAlias(c, v.alias, v.id); err != nil {
			t.Fatal(err)
		}
		v.blob = encrypt(t, c, v.alias, "x", nil)
		if tamperings[i].table == "access_keys" || tamperings[i].table == "principals" {
			v.user = d.principal(t, "victim-"+v.id, "Active")
			wantCode(t, useUser(context.Background(), c, v), "AccessDeniedException", "")
		}
		all = append(all, v)
	}
	return all
}

func TestTamperedRows(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	victims := makeVictims(t, d, newClient(d.url, d.admin, http.DefaultTransport))
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	for i, row := range tamperings {
		tag, err := d.pool.Exec(context.Background(), row.sql, row.arg(victims[i]))
		if err != nil || tag.RowsAffected() == 0 {
			t.Fatalf("%s: %d rows: %v", row.name, tag.RowsAffected(), err)
		}
	}
	for _, round := range []string{"cold", "cold again"} {
		s := d.serve(t)
		c := newClient(d.url, d.admin, http.DefaultTransport)
		for i, row := range tamperings {
			t.Run(round+"/"+row.name, func(t *testing.T) { wantTamperRefused(t, s, c, row.table, row.use, victims[i]) })
		}
		encrypt(t, c, victims[0].other, "x", nil)
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		log := must(os.ReadFile(s.log))(t)
		if !strings.Contains(string(log), `"level":"ERROR"`) || !strings.Contains(string(log), victims[0].id) {
			t.Errorf("the log does not name the altered row:\n%.2000s", log)
		}
	}
}

func wantTamperRefused(t *testing.T, s *server, c *kms.Client, table string, use func(context.Context, *kms.Client, victim) error, v victim) {
	t.Helper()
	if use == nil { // a budget is read when its block is used up, or at the first use after a start
		use = useEncrypt
	}
	before := s.metric(t, "trent_store_tampered_rows_total")
	err := use(context.Background(), c, v)
	if err == nil {
		t.Fatalf("an altered row of %s was taken", table)
	}
	wantError[*types.KMSInternalException](t, err, "")
	if strings.Contains(err.Error(), table) || strings.Contains(err.Error(), "MAC") {
		t.Errorf("the caller is told too much: %v", err)
	}
	if after := s.metric(t, "trent_store_tampered_rows_total"); after <= before {
		t.Errorf("trent_store_tampered_rows_total stays at %v", after)
	}
}

// A row that nobody has loaded yet is refused by a running server too; an
// altered deployment row stops the next start.
func TestTamperedWhileRunning(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	c := newClient(d.url, d.admin, http.DefaultTransport)
	key := createKey(t, c)
	_, err := d.pool.Exec(context.Background(), `UPDATE keys SET policy = '{}' WHERE id = $1`, *key.KeyId)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.GetKeyPolicy(context.Background(), &kms.GetKeyPolicyInput{KeyId: key.KeyId})
	wantError[*types.KMSInternalException](t, err, "")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.pool.Exec(context.Background(), `UPDATE deployment SET account = '999999999999'`); err != nil {
		t.Fatal(err)
	}
	refused := d.launch(t, "TRENT_ACCOUNT=999999999999")
	wantStartRefused(t, refused, "verifying the deployment row")
}

// A deployment that is put back to where init began is not set up again: that
// would make an administrator for whoever can write to the database.
func TestDeploymentSetBack(t *testing.T) {
	d := newDeployment(t, "")
	d.wantNotSetUpAgain(t)
	wantStartRefused(t, d.launch(t), "only half set up")
}

func (d *deployment) wantNotSetUpAgain(t *testing.T) {
	t.Helper()
	was := d.admin
	_, err := d.pool.Exec(context.Background(), `UPDATE deployment SET state = 'initialising', mac = '', version = 1`)
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.tryInitialise(t)
	if err == nil || !strings.Contains(out, "set back") || d.admin != was {
		t.Errorf("init of a deployment that was set back: %v\n%s", err, out)
	}
}
