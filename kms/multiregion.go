package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/store"
)

// ReplicateKey makes a replica of a multi-Region primary key in another Region
// of the deployment: a key of its own, with the same id and backing keys. The
// replica and what the related keys say of each other are committed together.
// Imported material does not go with it; it has to be imported there too.
func (s *Service) ReplicateKey(ctx context.Context, call *Call, in *awskms.ReplicateKeyInput) (*awskms.ReplicateKeyOutput, error) {
	var out *awskms.ReplicateKeyOutput
	err := s.change(ctx, call, func() (err error) {
		out, err = s.replicateKey(ctx, call, in)
		return err
	})
	return out, err
}

func (s *Service) replicateKey(ctx context.Context, call *Call, in *awskms.ReplicateKeyInput) (*awskms.ReplicateKeyOutput, error) {
	k, err := s.authorizeKey(ctx, call, "kms:ReplicateKey", *in.KeyId, keyOnly)
	if err != nil {
		return nil, err
	}
	if err := s.authorize(call, "kms:CreateKey"); err != nil { // in the replica's Region
		return nil, err
	}
	if err := s.checkReplication(k, *in.ReplicaRegion); err != nil {
		return nil, err
	}
	replica, material, err := s.newReplica(ctx, k, in)
	if err != nil {
		return nil, err
	}
	related, err := s.db.RelatedKeys(ctx, k.Key)
	if err != nil {
		return nil, err
	}
	change := s.db.NewChange()
	if err := change.InsertReplica(ctx, replica.Key, material); err != nil {
		return nil, unstorable(err)
	}
	if err := change.UpdateKeys(ctx, withRegions(k.Key, related, k.PrimaryRegion, replica.ReplicaRegions)...); err != nil {
		return nil, fmt.Errorf("sealing related keys: %w", err)
	}
	out := &awskms.ReplicateKeyOutput{
		ReplicaKeyMetadata: s.metadata(replica),
		ReplicaPolicy:      aws.String(replica.Policy),
		ReplicaTags:        awsTags(replica.Tags),
	}
	call.response = awsjson.AppendMembers(nil, out, []string{"ReplicaKeyMetadata", "ReplicaPolicy"})
	return out, fromReplication(s.commit(ctx, call, change, s.replicaCreated(call, replica)), replica)
}

func (s *Service) checkReplication(k *key, region string) error {
	if err := s.checkPrimary(&k.Key); err != nil {
		return err
	}
	if err := s.checkServed(region); err != nil {
		return err
	}
	if slices.Contains(k.Regions(), region) {
		return replicaExists(s.keyARN(k.Account, region, k.ID))
	}
	return nil
}

func replicaExists(arn string) error {
	return &types.AlreadyExistsException{Message: aws.String("Key " + arn + " already exists.")}
}

// checkServed refuses Regions that this deployment does not serve.
func (s *Service) checkServed(region string) error {
	if !slices.Contains(s.cfg.Regions, region) {
		return unsupported("Region %s is not supported.", region)
	}
	return nil
}

// checkPrimary refuses, of multi-Region keys, all but the primary key.
func (s *Service) checkPrimary(k *store.Key) error {
	if !k.Primary() {
		return unsupported("%s is not a multi-region primary key.", s.keyARN(k.Account, k.Region, k.ID))
	}
	return nil
}

// checkNotReplica refuses what is done for all related keys at the primary.
func (s *Service) checkNotReplica(k *store.Key) error {
	if k.Replica() {
		return s.checkPrimary(k)
	}
	return nil
}

// newReplica is the row of k's replica that a request asks for, and the rows
// of its material.
func (s *Service) newReplica(ctx context.Context, k *key, in *awskms.ReplicateKeyInput) (*key, []store.BackingKey, error) {
	policy, err := s.checkPolicy(k.Account, in.Policy)
	if err != nil {
		return nil, nil, err
	}
	tags, err := mergeTags(nil, in.Tags)
	if err != nil {
		return nil, nil, err
	}
	material, err := s.db.BackingKeys(ctx, k.Key, k.backingKeys)
	if err != nil {
		return nil, nil, err
	}
	row := store.Key{
		Account: k.Account, Region: *in.ReplicaRegion, ID: k.ID, State: string(types.KeyStateEnabled),
		Spec: k.Spec, Usage: k.Usage, Origin: k.Origin, MultiRegion: true, CurrentBackingKey: k.CurrentBackingKey,
		Description: aws.ToString(in.Description), Policy: policy, Tags: tags, Created: s.now().UTC(),
		PrimaryRegion: k.PrimaryRegion, ReplicaRegions: slices.Sorted(slices.Values(append(slices.Clone(k.ReplicaRegions), *in.ReplicaRegion))),
	}
	if k.Origin == string(types.OriginTypeExternal) {
		for i, b := range material {
			material[i] = withoutMaterial(b)
		}
		row.State, row.MaterialMissing = string(types.KeyStatePendingImport), true
	}
	replica := &key{Key: row, arn: s.keyARN(row.Account, row.Region, row.ID)}
	for _, b := range material {
		if b.ID == row.CurrentBackingKey {
			replica.backing = b
		}
	}
	return replica, material, nil
}

// withoutMaterial is what a related key has of b before its material has been
// imported there: which one it must be.
func withoutMaterial(b store.BackingKey) store.BackingKey {
	b.EKT, b.Expires, b.Description = nil, nil, ""
	return b
}

// withRegions are the rows of k and its related keys in their new roles.
func withRegions(k store.Key, related []store.RelatedKey, primary string, replicas []string) []store.Key {
	rows := []store.Key{k}
	for _, r := range related {
		rows = append(rows, r.Key)
	}
	for i := range rows {
		rows[i].PrimaryRegion, rows[i].ReplicaRegions = primary, replicas
	}
	return rows
}

// fromReplication tells a lost race for the Region from other failures.
func fromReplication(err error, replica *key) error {
	if errors.Is(err, store.ErrExists) {
		return replicaExists(replica.arn)
	}
	return err
}

// replicaCreated is the record of CreateKey that AWS has of a replication, in
// the replica's Region.
func (s *Service) replicaCreated(call *Call, replica *key) *audit.Record {
	asked := &awskms.CreateKeyInput{
		Description: aws.String(replica.Description), Origin: types.OriginType(replica.Origin), KeySpec: types.KeySpec(replica.Spec),
		KeyUsage: types.KeyUsageType(replica.Usage), Policy: aws.String(replica.Policy), Tags: awsTags(replica.Tags), MultiRegion: aws.Bool(true),
	}
	r := s.elsewhere(call, replica)
	r.EventName = "CreateKey"
	r.RequestParameters = awsjson.AppendMembers(nil, asked, []string{"Description", "Origin", "KeySpec", "KeyUsage", "Policy", "Tags", "MultiRegion"})
	r.ResponseElements = awsjson.AppendMembers(nil, &awskms.CreateKeyOutput{KeyMetadata: s.metadata(replica)}, []string{"KeyMetadata"})
	return r
}

// elsewhere is a further record of call, in the Region of a related key. A
// request id belongs to one record.
func (s *Service) elsewhere(call *Call, k *key) *audit.Record {
	r := s.record(call, nil)
	r.RequestID, r.AWSRegion = "", k.Region
	r.Resources = []audit.Resource{{AccountID: k.Account, ARN: k.arn}}
	return r
}

// UpdatePrimaryRegion makes a replica the primary key, and the primary a
// replica. AWS takes some seconds; here both are what they shall be once it is
// answered.
func (s *Service) UpdatePrimaryRegion(ctx context.Context, call *Call, in *awskms.UpdatePrimaryRegionInput) (*awskms.UpdatePrimaryRegionOutput, error) {
	err := s.change(ctx, call, func() error { return s.updatePrimaryRegion(ctx, call, in) })
	return &awskms.UpdatePrimaryRegionOutput{}, err
}

func (s *Service) updatePrimaryRegion(ctx context.Context, call *Call, in *awskms.UpdatePrimaryRegionInput) error {
	k, err := s.authorizeKey(ctx, call, "kms:UpdatePrimaryRegion", *in.KeyId, keyOnly)
	if err != nil {
		return err
	}
	if err := s.checkPrimary(&k.Key); err != nil {
		return err
	}
	region := *in.PrimaryRegion
	if err := s.checkServed(region); err != nil {
		return err
	}
	if region == k.Region {
		return unsupported("%s is the multi-region primary key already.", k.arn)
	}
	// Both must be enabled.
	to, err := s.authorizeRef(ctx, call, "kms:UpdatePrimaryRegion", keyRef{account: k.Account, region: region, id: k.ID}, call.Operation)
	if err != nil {
		return err
	}
	related, err := s.db.RelatedKeys(ctx, k.Key)
	if err != nil {
		return err
	}
	replicas := slices.DeleteFunc(k.Regions(), func(r string) bool { return r == region })
	rows := withRegions(k.Key, related, region, replicas)
	for i := range rows {
		moveSchedule(&rows[i], k.Key)
	}
	change := s.db.NewChange()
	if err := change.UpdateKeys(ctx, rows...); err != nil {
		return fmt.Errorf("sealing related keys: %w", err)
	}
	call.answeredKey(k.arn)
	return s.commit(ctx, call, change, s.elsewhere(call, to))
}

// moveSchedule gives the primary key what only that one has of rotation.
func moveSchedule(row *store.Key, from store.Key) {
	row.RotationPeriodInDays, row.NextRotation, row.OnDemandRotations = 0, nil, 0
	if row.Primary() {
		row.RotationPeriodInDays, row.NextRotation, row.OnDemandRotations = from.RotationPeriodInDays, from.NextRotation, from.OnDemandRotations
	}
}

// primaryOf returns k, or of a replica key its primary key, past the cache.
func (s *Service) primaryOf(ctx context.Context, k *key) (*key, error) {
	if !k.Replica() {
		return k, nil
	}
	primary, err := s.cache.load(ctx, s, keyRef{account: k.Account, region: k.PrimaryRegion, id: k.ID})
	if err != nil {
		return nil, fmt.Errorf("loading the primary key of %s: %w", k.arn, orphan(err))
	}
	if !primary.Primary() { // it has changed since k was loaded
		return nil, fmt.Errorf("primary key of %s: %w", k.arn, store.ErrConflict)
	}
	return primary, nil
}

// metadata is AWS's KeyMetadata of a key, with what ARNs it takes.
func (s *Service) metadata(k *key) *types.KeyMetadata {
	m := k.metadata()
	if k.State == string(types.KeyStatePendingReplicaDeletion) {
		m.PendingDeletionWindowInDays = aws.Int32(k.PendingWindowInDays)
	}
	if !k.MultiRegion {
		return m
	}
	in := func(region string) types.MultiRegionKey {
		return types.MultiRegionKey{Arn: aws.String(s.keyARN(k.Account, region, k.ID)), Region: aws.String(region)}
	}
	primary := in(k.PrimaryRegion)
	c := &types.MultiRegionConfiguration{MultiRegionKeyType: types.MultiRegionKeyTypeReplica, PrimaryKey: &primary, ReplicaKeys: []types.MultiRegionKey{}}
	if k.Primary() {
		c.MultiRegionKeyType = types.MultiRegionKeyTypePrimary
	}
	for _, region := range k.ReplicaRegions {
		c.ReplicaKeys = append(c.ReplicaKeys, in(region))
	}
	m.MultiRegionConfiguration = c
	return m
}

// awsTags are tags as AWS's list of them, empty rather than absent.
func awsTags(tags []store.Tag) []types.Tag {
	list := []types.Tag{}
	for _, tag := range tags {
		list = append(list, types.Tag{TagKey: aws.String(tag.Key), TagValue: aws.String(tag.Value)})
	}
	return list
}
