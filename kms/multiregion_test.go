package kms

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/jackc/pgx/v5"

	"github.com/trent-kms/trent/store"
)

const (
	awayRegion  = "eu-west-1"
	thirdRegion = "ap-south-1"
)

// in is the fleet as a client of another Region meets it.
func (f *fleet) in(region string) *fleet {
	there := *f
	there.region = region
	return &there
}

func multiRegionKey(t *testing.T, f *fleet, s *Service, edit func(*awskms.CreateKeyInput)) string {
	t.Helper()
	in := &awskms.CreateKeyInput{MultiRegion: aws.Bool(true)}
	if edit != nil {
		edit(in)
	}
	out, err := do(f, s, "CreateKey", (*Service).CreateKey, in)
	if err != nil {
		t.Fatal(err)
	}
	return *out.KeyMetadata.KeyId
}

func replicate(f *fleet, s *Service, id, region string) (*types.KeyMetadata, error) {
	out, err := do(f, s, "ReplicateKey", (*Service).ReplicateKey, &awskms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: &region})
	if err != nil {
		return nil, err
	}
	return out.ReplicaKeyMetadata, nil
}

func mustReplicate(t *testing.T, f *fleet, s *Service, id string, regions ...string) {
	t.Helper()
	for _, region := range regions {
		if _, err := replicate(f, s, id, region); err != nil {
			t.Fatal(err)
		}
	}
}

func setPrimary(f *fleet, s *Service, id, region string) error {
	_, err := do(f, s, "UpdatePrimaryRegion", (*Service).UpdatePrimaryRegion, &awskms.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: &region})
	return err
}

func rotateOnDemand(f *fleet, s *Service, id string) error {
	_, err := do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id})
	return err
}

// wantRoles demands that a key says of itself, in each of its Regions, which
// is the primary and which are the replicas.
func wantRoles(t *testing.T, f *fleet, s *Service, id, primary string, replicas ...string) {
	t.Helper()
	slices.Sort(replicas)
	for _, region := range append([]string{primary}, replicas...) {
		m := metadata(t, f.in(region), s, id)
		c := m.MultiRegionConfiguration
		if c == nil || !*m.MultiRegion || *m.Arn != s.keyARN(testAccount, region, id) {
			t.Fatalf("in %s: %+v", region, m)
		}
		var listed []string
		for _, r := range c.ReplicaKeys {
			listed = append(listed, *r.Region)
			if *r.Arn != s.keyARN(testAccount, *r.Region, id) {
				t.Errorf("in %s: ARN %s", region, *r.Arn)
			}
		}
		role := types.MultiRegionKeyTypeReplica
		if region == primary {
			role = types.MultiRegionKeyTypePrimary
		}
		if c.MultiRegionKeyType != role || *c.PrimaryKey.Region != primary || *c.PrimaryKey.Arn != s.keyARN(testAccount, primary, id) || !slices.Equal(listed, replicas) {
			t.Errorf("in %s: %s, primary %s, replicas %v", region, c.MultiRegionKeyType, *c.PrimaryKey.Region, listed)
		}
	}
}

// Related keys open each other's ciphertexts, before and after rotations of
// either kind, which are made at the primary for all.
func TestRelatedKeysRotateTogether(t *testing.T) {
	f := newFleet(t)
	s, other := f.host(t, "a"), f.host(t, "b")
	away, third := f.in(awayRegion), f.in(thirdRegion)
	id := multiRegionKey(t, f, s, nil)
	wantRoles(t, f, s, id, testRegion)
	blobs := [][]byte{seal(t, f, s, id, "text 0")}
	if err := rotateOnDemand(f, s, id); err != nil {
		t.Fatal(err)
	}
	mustReplicate(t, f, s, id, awayRegion, thirdRegion)
	wantRoles(t, f, s, id, testRegion, awayRegion, thirdRegion)
	blobs = append(blobs, seal(t, away, other, id, "text 1"))
	if err := rotateOnDemand(f, other, id); err != nil {
		t.Fatal(err)
	}
	blobs = append(blobs, seal(t, third, other, id, "text 2")) // another host may still seal one more under the material before
	enableRotation(t, f, s, id, 90)
	f.pass(90)
	for _, host := range []*Service{s, other, s} {
		sweep(t, host)
	}
	blobs = append(blobs, seal(t, away, s, id, "text 3"))
	for _, there := range []*fleet{f, away, third} {
		wantOpens(t, there, other, blobs)
		if n := len(materials(t, there, s, id)); n != 4 {
			t.Errorf("%d materials in %s", n, there.region)
		}
		if out := status(t, there, s, id); !out.KeyRotationEnabled || *out.RotationPeriodInDays != 90 || !out.NextRotationDate.Equal(f.started.Add(180*day)) {
			t.Errorf("status in %s: %+v", there.region, out)
		}
	}
	if n := len(rotateEvents(t, s, id)); n != 1+3+3 {
		t.Errorf("%d RotateKey events", n)
	}
	moved, err := do(third, s, "ReEncrypt", (*Service).ReEncrypt, &awskms.ReEncryptInput{CiphertextBlob: blobs[0], DestinationKeyId: &id})
	if err != nil || *moved.SourceKeyId != s.keyARN(testAccount, thirdRegion, id) || opens(away, s, moved.CiphertextBlob) != nil {
		t.Errorf("ReEncrypt in a Region of what was sealed in another: %+v, %v", moved, err)
	}
	for name, err := range map[string]error{
		"RotateKeyOnDemand":   rotateOnDemand(away, s, id),
		"EnableKeyRotation":   onlyError(do(away, s, "EnableKeyRotation", (*Service).EnableKeyRotation, &awskms.EnableKeyRotationInput{KeyId: &id})),
		"DisableKeyRotation":  onlyError(do(away, s, "DisableKeyRotation", (*Service).DisableKeyRotation, &awskms.DisableKeyRotationInput{KeyId: &id})),
		"ReplicateKey":        onlyError(replicate(away, s, id, thirdRegion)),
		"UpdatePrimaryRegion": setPrimary(away, s, id, thirdRegion),
	} {
		if wantCode(t, err, "UnsupportedOperationException"); err == nil || APIError(err).ErrorMessage() != s.keyARN(testAccount, awayRegion, id)+" is not a multi-region primary key." {
			t.Errorf("%s of a replica: %v", name, err)
		}
	}
}

func onlyError[T any](_ T, err error) error { return err }

// What is not shared is each key's own.
func TestReplicasAreIndependent(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	away := f.in(awayRegion)
	id := multiRegionKey(t, f, s, func(in *awskms.CreateKeyInput) {
		in.Description, in.Tags = aws.String("home"), []types.Tag{{TagKey: aws.String("k"), TagValue: aws.String("v")}}
	})
	f.pass(1)
	out, err := do(f, s, "ReplicateKey", (*Service).ReplicateKey, &awskms.ReplicateKeyInput{
		KeyId: &id, ReplicaRegion: aws.String(awayRegion), Description: aws.String("away"), Tags: []types.Tag{{TagKey: aws.String("x"), TagValue: aws.String("y")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := out.ReplicaKeyMetadata
	if *m.KeyId != id || *m.Description != "away" || m.KeyState != types.KeyStateEnabled || !m.CreationDate.Equal(f.now()) || *m.MultiRegionConfiguration.PrimaryKey.Region != testRegion ||
		*out.ReplicaPolicy != s.defaultPolicy(testAccount) || len(out.ReplicaTags) != 1 || *out.ReplicaTags[0].TagKey != "x" {
		t.Errorf("answer %+v %+v", out, m)
	}
	blob := seal(t, f, s, id, "text 0")
	if _, err := do(f, s, "DisableKey", (*Service).DisableKey, &awskms.DisableKeyInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	wantState(t, f, s, id, types.KeyStateDisabled)
	wantState(t, away, s, id, types.KeyStateEnabled)
	wantCode(t, opens(f, s, blob), "DisabledException")
	if err := opens(away, s, blob); err != nil {
		t.Errorf("the replica of a disabled key: %v", err)
	}
	if _, err := do(away, s, "CreateAlias", (*Service).CreateAlias, &awskms.CreateAliasInput{AliasName: aws.String("alias/x"), TargetKeyId: &id}); err != nil {
		t.Fatal(err)
	}
	if _, err := do(f, s, "DescribeKey", (*Service).DescribeKey, &awskms.DescribeKeyInput{KeyId: aws.String("alias/x")}); err == nil {
		t.Error("an alias of a replica is known in another Region")
	}
	used := func(f *fleet) types.KeyLastUsageTrackingOperation {
		out, err := do(f, s, "GetKeyLastUsage", (*Service).GetKeyLastUsage, &awskms.GetKeyLastUsageInput{KeyId: &id})
		if err != nil {
			t.Fatal(err)
		}
		return out.KeyLastUsage.Operation
	}
	if home, there := used(f), used(away); home != "Encrypt" || there != "Decrypt" {
		t.Errorf("last uses %s and %s", home, there)
	}
	if *metadata(t, f, s, id).Description != "home" {
		t.Error("the replica's description is the primary's")
	}
}

// The primary role goes to another Region with the schedule, and everything
// that only a primary key can do with it.
func TestUpdatePrimaryRegion(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	away := f.in(awayRegion)
	id := multiRegionKey(t, f, s, nil)
	wantCode(t, setPrimary(f, s, id, awayRegion), "NotFoundException") // no replica there
	mustReplicate(t, f, s, id, awayRegion)
	wantCode(t, setPrimary(f, s, id, "sa-east-1"), "UnsupportedOperationException") // not served
	wantCode(t, setPrimary(f, s, id, testRegion), "UnsupportedOperationException")
	toggle := func(f *fleet, name string) {
		t.Helper()
		run := map[string]error{}
		if name == "DisableKey" {
			run[name] = onlyError(do(f, s, name, (*Service).DisableKey, &awskms.DisableKeyInput{KeyId: &id}))
		} else {
			run[name] = onlyError(do(f, s, name, (*Service).EnableKey, &awskms.EnableKeyInput{KeyId: &id}))
		}
		if run[name] != nil {
			t.Fatal(run[name])
		}
	}
	for _, there := range []*fleet{f, away} { // both must be enabled
		toggle(there, "DisableKey")
		wantCode(t, setPrimary(f, s, id, awayRegion), "DisabledException")
		toggle(there, "EnableKey")
	}
	enableRotation(t, f, s, id, 90)
	if err := rotateOnDemand(f, s, id); err != nil {
		t.Fatal(err)
	}
	wantRoles(t, f, s, id, testRegion, awayRegion)
	if err := setPrimary(f, s, id, awayRegion); err != nil {
		t.Fatal(err)
	}
	wantRoles(t, f, s, id, awayRegion, testRegion)
	wantCode(t, rotateOnDemand(f, s, id), "UnsupportedOperationException")
	mustReplicate(t, away, s, id, thirdRegion)
	wantRoles(t, f, s, id, awayRegion, testRegion, thirdRegion)
	row, err := s.db.Key(t.Context(), testAccount, awayRegion, id)
	if err != nil || row.OnDemandRotations != 1 || row.RotationPeriodInDays != 90 {
		t.Errorf("new primary %+v, %v", row, err)
	}
	f.pass(90)
	sweep(t, s)
	sweep(t, s)
	for _, there := range []*fleet{f, away, f.in(thirdRegion)} {
		if all := materials(t, there, s, id); len(all) != 3 || all[2].RotationType != types.RotationTypeAutomatic {
			t.Errorf("materials in %s: %+v", there.region, all)
		}
	}
	if n := recorded(t, s, "UpdatePrimaryRegion", awayRegion) + recorded(t, s, "CreateKey", thirdRegion); n != 2 {
		t.Errorf("%d records in the other Regions", n)
	}
}

// recorded counts the records of successes of an operation in a Region.
func recorded(t *testing.T, s *Service, event, region string) int {
	t.Helper()
	rows, _ := s.db.Pool().Query(t.Context(), `SELECT count(*) FROM audit_records
		WHERE record->>'eventName' = $1 AND record->>'awsRegion' = $2 AND record->>'errorCode' IS NULL`, event, region)
	n, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A replica's budget is that of its primary key, and it is renewed for both
// even while the primary key is disabled.
func TestReplicaSpendsThePrimarysBudget(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	s.budgets.block, s.budgets.limit, s.budgets.reserve = 8, 128, 64
	away := f.in(awayRegion)
	id := multiRegionKey(t, f, s, nil)
	mustReplicate(t, f, s, id, awayRegion)
	for range 64 {
		seal(t, f, s, id, "x")
	}
	if _, err := do(f, s, "DisableKey", (*Service).DisableKey, &awskms.DisableKeyInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	for range 128 { // more than is left of it
		seal(t, away, s, id, "x")
	}
	home, there := materials(t, f, s, id), materials(t, away, s, id)
	for len(materials(t, f, s, id)) != len(home) { // a renewal in the background came between
		home, there = materials(t, f, s, id), materials(t, away, s, id)
	}
	if len(home) < 2 || len(home) != len(there) || *home[len(home)-1].KeyMaterialId != *there[len(there)-1].KeyMaterialId {
		t.Errorf("%d materials at home, %d away", len(home), len(there))
	}
}

// Of many who replicate at once, one makes the replica of a Region.
func TestReplicateAtOnce(t *testing.T) {
	f := newFleet(t)
	hosts := []*Service{f.host(t, "a"), f.host(t, "b"), f.host(t, "c")}
	id := multiRegionKey(t, f, hosts[0], nil)
	var group sync.WaitGroup
	var mu sync.Mutex
	codes := map[string]int{}
	for _, s := range hosts {
		for _, region := range []string{awayRegion, thirdRegion} {
			group.Go(func() {
				_, err := replicate(f, s, id, region)
				code := ""
				if err != nil {
					code = APIError(err).ErrorCode()
				}
				mu.Lock()
				defer mu.Unlock()
				codes[code]++
			})
		}
	}
	group.Wait()
	if codes[""] == 0 || codes[""] > 2 || codes[""]+codes["AlreadyExistsException"]+codes["ThrottlingException"] != 6 {
		t.Errorf("answers %v", codes)
	}
	for _, region := range []string{awayRegion, thirdRegion} {
		if _, err := replicate(f, hosts[0], id, region); err != nil {
			wantCode(t, err, "AlreadyExistsException")
		}
	}
	wantRoles(t, f, hosts[1], id, testRegion, awayRegion, thirdRegion)
	wantCode(t, onlyError(replicate(f, hosts[1], id, testRegion)), "AlreadyExistsException")
}

func TestReplicateLimits(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id, single := multiRegionKey(t, f, s, nil), createKey(t, f, s)
	wantCode(t, onlyError(replicate(f, s, single, awayRegion)), "UnsupportedOperationException")
	wantCode(t, onlyError(replicate(f, s, id, "sa-east-1")), "UnsupportedOperationException")
	_, err := s.db.Pool().Exec(t.Context(), "INSERT INTO account_regions (account, region, key_count) VALUES ($1, $2, $3)", testAccount, awayRegion, store.MaxKeys)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, onlyError(replicate(f, s, id, awayRegion)), "LimitExceededException")
	_, err = do(f, s, "ReplicateKey", (*Service).ReplicateKey, &awskms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: aws.String(thirdRegion), Policy: aws.String("{}x")})
	wantCode(t, err, "MalformedPolicyDocumentException")
	wantRoles(t, f, s, id, testRegion)
}

// A role that somebody has altered, or a replica put back, is refused by every
// operation that needs it.
func TestRolesTampered(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := multiRegionKey(t, f, s, nil)
	mustReplicate(t, f, s, id, awayRegion)
	alter := func(sql string) {
		t.Helper()
		if tag, err := s.db.Pool().Exec(t.Context(), sql, id); err != nil || tag.RowsAffected() == 0 {
			t.Fatal(tag, err)
		}
	}
	alter("UPDATE keys SET primary_region = 'eu-west-1', replica_regions = '{us-east-1}' WHERE id = $1 AND region = 'eu-west-1'")
	fresh := f.host(t, "b")
	for name, err := range map[string]error{
		"DescribeKey of the replica": onlyError(do(f.in(awayRegion), fresh, "DescribeKey", (*Service).DescribeKey, &awskms.DescribeKeyInput{KeyId: &id})),
		"RotateKeyOnDemand":          rotateOnDemand(f, fresh, id),
		"RotateKeyOnDemand away":     rotateOnDemand(f.in(awayRegion), fresh, id),
		"UpdatePrimaryRegion":        setPrimary(f, fresh, id, awayRegion),
		"ReplicateKey":               onlyError(replicate(f, fresh, id, thirdRegion)),
	} {
		if err == nil || APIError(err).ErrorCode() != "KMSInternalException" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(rotateEvents(t, s, id)); n != 0 {
		t.Error(fmt.Sprint(n, " rotations"))
	}
}
