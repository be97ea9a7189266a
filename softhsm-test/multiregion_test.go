package softhsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// regionClient is client for another Region.
func (d *deployment) regionClient(t testing.TB, in string) *kms.Client {
	t.Helper()
	r := &recorder{}
	t.Cleanup(func() { d.wantRecords(t, r.all()) })
	return newRegionClient(d.url, in, d.admin, r)
}

// multiRegionKey makes a primary key, and replicas of it.
func multiRegionKey(t testing.TB, c *kms.Client, in kms.CreateKeyInput, regions ...string) *types.KeyMetadata {
	t.Helper()
	in.MultiRegion = aws.Bool(true)
	key := must(c.CreateKey(context.Background(), &in))(t).KeyMetadata
	for _, region := range regions {
		must(c.ReplicateKey(context.Background(), &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: &region}))(t)
	}
	return key
}

func arnIn(in string, key *types.KeyMetadata) string {
	return strings.Replace(*key.Arn, ":"+region+":", ":"+in+":", 1)
}

func TestMultiRegionMetadata(t *testing.T) {
	d := shared(t)
	c, away := d.client(t), d.regionClient(t, otherRegion)
	ctx := context.Background()
	key := must(c.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: aws.Bool(true)}))(t).KeyMetadata
	config := key.MultiRegionConfiguration
	if id := *key.KeyId; len(id) != 36 || !strings.HasPrefix(id, "mrk-") || strings.Trim(id[4:], "0123456789abcdef") != "" || !*key.MultiRegion {
		t.Errorf("new key %+v", key)
	}
	if config.MultiRegionKeyType != types.MultiRegionKeyTypePrimary || *config.PrimaryKey.Arn != *key.Arn || config.ReplicaKeys == nil || len(config.ReplicaKeys) != 0 {
		t.Errorf("new key's Regions %+v", config)
	}
	policy := aws.String(defaultPolicy)
	out := must(c.ReplicateKey(ctx, &kms.ReplicateKeyInput{
		KeyId: key.Arn, ReplicaRegion: aws.String(otherRegion), Description: aws.String("there"), Policy: policy, Tags: []types.Tag{tag("a", "b")},
	}))(t)
	replica := out.ReplicaKeyMetadata
	if *replica.KeyId != *key.KeyId || *replica.Arn != arnIn(otherRegion, key) || *replica.Description != "there" ||
		*replica.MultiRegionConfiguration.PrimaryKey.Region != region || *out.ReplicaPolicy != *policy || *out.ReplicaTags[0].TagKey != "a" {
		t.Errorf("replica %+v of %+v", replica, key)
	}
	if there := describe(t, away, *replica.Arn); there.MultiRegionConfiguration.MultiRegionKeyType != types.MultiRegionKeyTypeReplica ||
		*there.MultiRegionConfiguration.ReplicaKeys[0].Arn != *replica.Arn || *there.CurrentKeyMaterialId != *key.CurrentKeyMaterialId {
		t.Errorf("replica %+v", there)
	}
	if single := createKey(t, c); single.MultiRegionConfiguration != nil || *single.MultiRegion {
		t.Errorf("single-Region key %+v", single)
	}
	_, err := away.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.Arn})
	wantCode(t, err, "NotFoundException", "Invalid arn "+region)
	_, err = c.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: aws.String(otherRegion)})
	wantError[*types.AlreadyExistsException](t, err, arnIn(otherRegion, key))
	_, err = away.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: aws.String(thirdRegion)})
	wantError[*types.UnsupportedOperationException](t, err, *replica.Arn+" is not a multi-region primary key.")
	_, err = c.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: aws.String("sa-east-1")})
	wantError[*types.UnsupportedOperationException](t, err, "sa-east-1")
	for _, bad := range []string{"", "Mars", "us_east_1", strings.Repeat("a", 31) + "-1"} {
		_, err = c.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: &bad})
		wantCode(t, err, "ValidationException", "replicaRegion")
		_, err = c.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: key.KeyId, PrimaryRegion: &bad})
		wantCode(t, err, "ValidationException", "primaryRegion")
	}
	if after := describe(t, c, *key.KeyId); len(after.MultiRegionConfiguration.ReplicaKeys) != 1 {
		t.Errorf("refused calls had an effect: %+v", after.MultiRegionConfiguration)
	}
	made := d.records(t, "record->>'eventName' = 'CreateKey' AND record->>'awsRegion' = $1 AND record->'responseElements'->'keyMetadata'->>'keyId' = $2", otherRegion, *key.KeyId)
	if len(made) != 1 || made[0].RequestID != "" || made[0].Resources[0].ARN != *replica.Arn || made[0].UserIdentity.AccessKeyID != d.admin.ID {
		t.Errorf("records of CreateKey in the replica's Region: %+v", made)
	}
}

// Every kind of key does in one Region what another Region has begun.
func TestRelatedKeysInteroperate(t *testing.T) {
	d := shared(t)
	ctx := context.Background()
	home, away := d.client(t), d.regionClient(t, otherRegion)
	t.Run("symmetric", func(t *testing.T) {
		key := multiRegionKey(t, home, kms.CreateKeyInput{}, otherRegion)
		bound := map[string]string{"purpose": "test"}
		wantDecrypt(t, away, encrypt(t, home, *key.KeyId, marker, bound), marker, bound)
		wantDecrypt(t, home, encrypt(t, away, *key.KeyId, marker, bound), marker, bound)
		dataKey := must(away.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: "AES_256"}))(t)
		wantDecrypt(t, home, dataKey.CiphertextBlob, string(dataKey.Plaintext), nil)
		blob := encrypt(t, home, *key.KeyId, marker, nil)
		third := createKey(t, away)
		moved := must(away.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: third.KeyId}))(t)
		if *moved.SourceKeyId != arnIn(otherRegion, key) || *moved.SourceKeyMaterialId != *key.CurrentKeyMaterialId {
			t.Errorf("ReEncrypt answered %+v", moved)
		}
		_, err := d.regionClient(t, thirdRegion).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
		wantCode(t, err, "AccessDeniedException", "does not exist in this region")
		alone := encrypt(t, home, *createKey(t, home).KeyId, marker, nil)
		_, err = away.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: alone, KeyId: key.KeyId})
		wantError[*types.IncorrectKeyException](t, err, "")
	})
	t.Run("RSA", func(t *testing.T) {
		key := multiRegionKey(t, home, kms.CreateKeyInput{KeySpec: types.KeySpecRsa2048, KeyUsage: encrypts}, otherRegion)
		there := describe(t, away, *key.KeyId)
		if !bytes.Equal(publicKeyOf(t, home, key), publicKeyOf(t, away, there)) {
			t.Error("related keys have different public keys")
		}
		algorithm := types.EncryptionAlgorithmSpecRsaesOaepSha256
		out := must(home.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte(marker), EncryptionAlgorithm: algorithm}))(t)
		wantRSADecrypt(t, away, there, algorithm, out.CiphertextBlob, []byte(marker))
	})
	t.Run("signature", func(t *testing.T) {
		key := multiRegionKey(t, home, kms.CreateKeyInput{KeySpec: types.KeySpecEccNistP256, KeyUsage: signs}, otherRegion)
		signature := signed(t, away, describe(t, away, *key.KeyId), "ECDSA_SHA_256", "", []byte("m"))
		must(home.Verify(ctx, &kms.VerifyInput{KeyId: key.KeyId, Message: []byte("m"), Signature: signature, SigningAlgorithm: "ECDSA_SHA_256"}))(t)
	})
	t.Run("HMAC", func(t *testing.T) {
		key := multiRegionKey(t, home, kms.CreateKeyInput{KeySpec: types.KeySpecHmac256, KeyUsage: macs}, otherRegion)
		mac := must(home.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: key.KeyId, Message: []byte("m"), MacAlgorithm: "HMAC_SHA_256"}))(t).Mac
		must(away.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: key.KeyId, Message: []byte("m"), Mac: mac, MacAlgorithm: "HMAC_SHA_256"}))(t)
		_, err := away.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: key.KeyId, Message: []byte("n"), Mac: mac, MacAlgorithm: "HMAC_SHA_256"})
		wantError[*types.KMSInvalidMacException](t, err, "")
	})
	d.wantNoPlaintext(t, marker)
}

// Rotations and the primary role, over two Regions.
func TestPrimarySwitch(t *testing.T) {
	d := shared(t)
	ctx := context.Background()
	home, away := d.client(t), d.regionClient(t, otherRegion)
	key := multiRegionKey(t, home, kms.CreateKeyInput{}, otherRegion, thirdRegion)
	before := encrypt(t, away, *key.KeyId, marker, nil)
	must(home.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key.KeyId}))(t)
	must(home.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId}))(t)
	must(home.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: key.KeyId, PrimaryRegion: aws.String(otherRegion)}))(t)
	_, err := home.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId})
	wantError[*types.UnsupportedOperationException](t, err, *key.Arn+" is not a multi-region primary key.")
	must(away.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId}))(t)
	for _, in := range []string{region, otherRegion, thirdRegion} {
		c := d.regionClient(t, in)
		m := describe(t, c, *key.KeyId)
		if m.KeyState != types.KeyStateEnabled || *m.MultiRegionConfiguration.PrimaryKey.Region != otherRegion || len(m.MultiRegionConfiguration.ReplicaKeys) != 2 {
			t.Errorf("in %s: %+v", in, m)
		}
		if n := len(allMaterial(t, c, *key.KeyId)); n != 3 {
			t.Errorf("%d materials in %s", n, in)
		}
		if out := must(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key.KeyId}))(t); !out.KeyRotationEnabled || *out.RotationPeriodInDays != 365 {
			t.Errorf("rotation status in %s: %+v", in, out)
		}
		wantDecrypt(t, c, before, marker, nil)
		wantDecrypt(t, c, encrypt(t, home, *key.KeyId, marker, nil), marker, nil)
		events := d.records(t, "record->>'eventName' = 'RotateKey' AND record->>'awsRegion' = $1 AND record->'serviceEventDetails'->>'keyId' = $2", in, *key.KeyId)
		if len(events) != 2 || events[0].Resources[0].ARN != arnIn(in, key) {
			t.Errorf("RotateKey events in %s: %+v", in, events)
		}
	}
	switches := d.records(t, "record->>'eventName' = 'UpdatePrimaryRegion' AND record->>'errorCode' IS NULL AND record->'requestParameters'->>'keyId' = $1", *key.KeyId)
	if len(switches) != 2 || switches[0].AWSRegion == switches[1].AWSRegion {
		t.Errorf("records of the switch: %+v", switches)
	}
	d.wantChains(t)
}

// The same material is imported into each Region by AWS's procedure.
func TestReplicaImport(t *testing.T) {
	d := shared(t)
	ctx := context.Background()
	home, away := d.client(t), d.regionClient(t, otherRegion)
	key := multiRegionKey(t, home, kms.CreateKeyInput{Origin: types.OriginTypeExternal})
	material := make([]byte, 32)
	_, _ = rand.Read(material)
	bring := func(c *kms.Client, material []byte) error {
		p := must(c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{
			KeyId: key.KeyId, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha1, WrappingKeySpec: types.WrappingKeySpecRsa2048}))(t)
		_, err := c.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{
			KeyId: key.KeyId, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrapped(t, types.AlgorithmSpecRsaesOaepSha1, p.PublicKey, material),
			ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
		})
		return err
	}
	must(0, bring(home, material))(t)
	must(home.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: aws.String(otherRegion)}))(t)
	blob := encrypt(t, home, *key.KeyId, marker, nil)
	_, err := away.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	wantError[*types.KMSInvalidStateException](t, err, "is pending import.")
	wantError[*types.IncorrectKeyMaterialException](t, bring(away, bytes.Repeat([]byte{1}, 32)), "")
	must(0, bring(away, material))(t)
	wantDecrypt(t, away, blob, marker, nil)
	must(home.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: key.KeyId}))(t)
	wantDecrypt(t, away, blob, marker, nil)
}

// A primary key is deleted after its last replica, by the sweeps of a running
// service.
func TestReplicaDeletionOrder(t *testing.T) {
	d := newDeployment(t, "failpoint")
	clock := filepath.Join(d.dir, "clock")
	set := func(ahead string) { must(0, os.WriteFile(clock, []byte(ahead), 0o600))(t) }
	set("0s")
	d.serve(t, "TRENT_TEST_CLOCK="+clock)
	home, away := d.racingClient(t), newRegionClient(d.url, otherRegion, d.admin, http.DefaultTransport)
	ctx := context.Background()
	key := multiRegionKey(t, home, kms.CreateKeyInput{}, otherRegion)
	blob := encrypt(t, away, *key.KeyId, marker, nil)
	out := must(home.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))(t)
	if out.KeyState != types.KeyStatePendingReplicaDeletion || out.DeletionDate != nil || *out.PendingWindowInDays != 7 {
		t.Errorf("answer %+v", out)
	}
	wantDecrypt(t, away, blob, marker, nil)
	must(away.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))(t)
	set("169h")
	waitGone(t, away, *key.KeyId)
	m := describe(t, home, *key.KeyId)
	if m.KeyState != types.KeyStatePendingDeletion || m.DeletionDate == nil || time.Until(*m.DeletionDate) < 13*24*time.Hour || len(m.MultiRegionConfiguration.ReplicaKeys) != 0 {
		t.Errorf("after its last replica: %+v", m)
	}
	must(home.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key.KeyId}))(t)
	must(home.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))(t)
	wantDecrypt(t, home, blob, marker, nil)
	must(home.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))(t)
	set("338h")
	waitGone(t, home, *key.KeyId)
	d.wantRowsGone(t, *key.KeyId)
	d.wantChains(t)
}

// A kill on the way of a replication leaves a replica that all related keys
// know, or none.
func TestCrashInReplication(t *testing.T) {
	d := newDeployment(t, "failpoint")
	s := d.serve(t)
	key := multiRegionKey(t, d.client(t), kms.CreateKeyInput{})
	must(0, s.stop())(t)
	for point, want := range map[string]int{"change.before_commit": 0, "change.after_commit": 1} {
		in := otherRegion
		if want == 1 {
			in = thirdRegion
		}
		err := d.kills(t, point, func(c *kms.Client) error {
			_, err := c.ReplicateKey(context.Background(), &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: &in})
			return err
		})
		if err == nil {
			t.Fatal("a dead server answered")
		}
		s := d.serve(t)
		there, err := d.regionClient(t, in).DescribeKey(context.Background(), &kms.DescribeKeyInput{KeyId: key.KeyId})
		if (err == nil) != (want == 1) {
			t.Errorf("killed at %s: %+v, %v", point, there, err)
		}
		listed := false
		for _, replica := range describe(t, d.client(t), *key.KeyId).MultiRegionConfiguration.ReplicaKeys {
			listed = listed || *replica.Region == in
		}
		if listed != (want == 1) {
			t.Errorf("killed at %s: the primary key lists the replica: %v", point, listed)
		}
		d.wantNoOrphans(t)
		d.wantChains(t)
		must(0, s.stop())(t)
	}
}

// A role that was altered behind Trent's back is refused, and counted.
func TestTamperedRole(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	home := newClient(d.url, d.admin, http.DefaultTransport)
	ctx := context.Background()
	key := multiRegionKey(t, home, kms.CreateKeyInput{}, otherRegion)
	blob := encrypt(t, home, *key.KeyId, marker, nil)
	must(0, s.stop())(t)
	tag, err := d.pool.Exec(ctx, `UPDATE keys SET primary_region = region, replica_regions = ARRAY[$2] WHERE id = $1 AND region = $3`, *key.KeyId, region, otherRegion)
	if err != nil || tag.RowsAffected() != 1 {
		t.Fatal(tag, err)
	}
	s = d.serve(t)
	home, away := newClient(d.url, d.admin, http.DefaultTransport), newRegionClient(d.url, otherRegion, d.admin, http.DefaultTransport)
	for name, use := range map[string]func() error{
		"Decrypt": func() error { _, err := away.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}); return err },
		"RotateKeyOnDemand of the forged primary": func() error {
			_, err := away.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId})
			return err
		},
		"RotateKeyOnDemand of the primary": func() error {
			_, err := home.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := s.metric(t, "trent_store_tampered_rows_total")
			wantError[*types.KMSInternalException](t, use(), "")
			if s.metric(t, "trent_store_tampered_rows_total") <= before {
				t.Error("it was not counted")
			}
		})
	}
	wantDecrypt(t, home, blob, marker, nil)
}
