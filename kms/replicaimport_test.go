package kms

import (
	"testing"
	"time"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Imported material is imported into each Region, and must be the same.
func TestReplicaImport(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	away := f.in(awayRegion)
	id := multiRegionKey(t, f, s, func(in *awskms.CreateKeyInput) { in.Origin = types.OriginTypeExternal })
	wantCode(t, onlyError(replicate(f, s, id, awayRegion)), "KMSInvalidStateException")
	home := getParcel(t, f, s, id)
	first, err := home.importKey(t, f, s, id, fixed(1), nil)
	if err != nil {
		t.Fatal(err)
	}
	mustReplicate(t, f, s, id, awayRegion)
	wantState(t, away, s, id, types.KeyStatePendingImport)
	wantCode(t, setPrimary(f, s, id, awayRegion), "KMSInvalidStateException")
	blob := seal(t, f, s, id, "text 0")
	wantCode(t, opens(away, s, blob), "KMSInvalidStateException")
	there := getParcel(t, away, s, id)
	_, err = home.importKey(t, away, s, id, fixed(1), nil)
	wantCode(t, err, "InvalidImportTokenException")
	_, err = there.importKey(t, away, s, id, fixed(2), nil)
	wantCode(t, err, "IncorrectKeyMaterialException")
	asNew := func(in *awskms.ImportKeyMaterialInput) { in.ImportType = types.ImportTypeNewKeyMaterial }
	_, err = there.importKey(t, away, s, id, fixed(2), asNew)
	wantCode(t, err, "UnsupportedOperationException")
	expires := f.now().Add(time.Hour)
	same, err := there.importKey(t, away, s, id, fixed(1), func(in *awskms.ImportKeyMaterialInput) {
		in.ExpirationModel, in.ValidTo = types.ExpirationModelTypeKeyMaterialExpires, &expires
	})
	if err != nil || same != first {
		t.Fatalf("material %s, want %s: %v", same, first, err)
	}
	if err := opens(away, s, blob); err != nil {
		t.Errorf("the same material in another Region: %v", err)
	}

	// New material awaits its import everywhere, then one rotation for all.
	if _, err := home.importKey(t, f, s, id, fixed(3), asNew); err != nil {
		t.Fatal(err)
	}
	pending := func(f *fleet) types.KeyMaterialState {
		all := materials(t, f, s, id)
		return all[len(all)-1].KeyMaterialState
	}
	for _, f := range []*fleet{f, away} {
		if got := pending(f); got != types.KeyMaterialStatePendingMultiRegionImportAndRotation {
			t.Errorf("in %s the new material is %s", f.region, got)
		}
	}
	wantCode(t, rotateOnDemand(f, s, id), "KMSInvalidStateException")
	if _, err := there.importKey(t, away, s, id, fixed(3), nil); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*fleet{f, away} {
		if got := pending(f); got != types.KeyMaterialStatePendingRotation {
			t.Errorf("in %s the new material is %s", f.region, got)
		}
	}
	if err := rotateOnDemand(f, s, id); err != nil {
		t.Fatal(err)
	}
	wantOpens(t, f, s, [][]byte{blob, seal(t, away, s, id, "text 1")})
	wantOpens(t, away, s, [][]byte{blob, seal(t, f, s, id, "text 1")})

	// Deletion and expiry are a Region's own.
	f.pass(1.0 / 24)
	wantState(t, away, s, id, types.KeyStatePendingImport)
	if err := s.expireDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantState(t, away, s, id, types.KeyStatePendingImport)
	wantState(t, f, s, id, types.KeyStateEnabled)
	if err := deleteMaterial(f, s, id, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := there.importKey(t, away, s, id, fixed(1), nil); err != nil {
		t.Fatal(err)
	}
	wantState(t, f, s, id, types.KeyStatePendingImport)
	wantState(t, away, s, id, types.KeyStateEnabled)
	if err := opens(away, s, blob); err != nil {
		t.Error(err)
	}
}

// Pending material that the primary key loses is forgotten in every Region;
// what a replica loses of it can be imported there again.
func TestReplicaPendingMaterial(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	away := f.in(awayRegion)
	id := multiRegionKey(t, f, s, func(in *awskms.CreateKeyInput) { in.Origin = types.OriginTypeExternal })
	home := getParcel(t, f, s, id)
	if _, err := home.importKey(t, f, s, id, fixed(1), nil); err != nil {
		t.Fatal(err)
	}
	mustReplicate(t, f, s, id, awayRegion)
	there := getParcel(t, away, s, id)
	asNew := func(in *awskms.ImportKeyMaterialInput) { in.ImportType = types.ImportTypeNewKeyMaterial }
	second, err := home.importKey(t, f, s, id, fixed(2), asNew)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := there.importKey(t, away, s, id, fixed(2), nil); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second deletes nothing
			if err := deleteMaterial(away, s, id, &second); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(materials(t, away, s, id)); n != 2 {
			t.Errorf("%d materials of the replica", n)
		}
	}
	if err := deleteMaterial(f, s, id, &second); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*fleet{f, away} {
		if n := len(materials(t, f, s, id)); n != 1 {
			t.Errorf("%d materials in %s", n, f.region)
		}
	}
	wantCode(t, deleteMaterial(away, s, id, &second), "NotFoundException")
	if _, err := home.importKey(t, f, s, id, fixed(3), asNew); err != nil {
		t.Fatal(err)
	}
	if n := len(materials(t, away, s, id)); n != 2 {
		t.Errorf("%d materials of the replica", n)
	}
}
