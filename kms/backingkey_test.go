package kms

import (
	"testing"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
)

// A backing key that is missing, or was put back, is refused, and counted as
// what it is: not as a ciphertext that is wrong.
func TestBackingKeysAreBound(t *testing.T) {
	for name, sql := range map[string]string{
		"left out":     "DELETE FROM backing_keys WHERE key_id = $1 AND number = 0",
		"put in anew":  "INSERT INTO backing_keys SELECT account, region, key_id, gen_random_uuid(), version, ekt, material_id, provenance, public_key, created, mac_generation, mac, 7, rotation_type, rotated, pending, expires, description FROM backing_keys WHERE key_id = $1 AND number = 0",
		"set rewound":  "UPDATE keys SET backing_key_set = '' WHERE id = $1",
		"current old":  "UPDATE keys SET current_backing_key = (SELECT id FROM backing_keys WHERE key_id = $1 AND number = 0) WHERE id = $1",
		"period grown": "UPDATE keys SET rotation_period_days = 2560 WHERE id = $1",
		"date moved":   "UPDATE keys SET next_rotation = next_rotation + interval '10 years' WHERE id = $1",
		"limit reset":  "UPDATE keys SET on_demand_rotations = 0 WHERE id = $1",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			s := f.host(t, "a")
			id := createKey(t, f, s)
			blob := seal(t, f, s, id, "text 0")
			enableRotation(t, f, s, id, 365)
			if _, err := do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.db.Pool().Exec(t.Context(), sql, id); err != nil {
				t.Fatal(err)
			}
			fresh := f.host(t, "b")
			_, err := do(f, fresh, "Decrypt", (*Service).Decrypt, &awskms.DecryptInput{CiphertextBlob: blob})
			if err == nil || APIError(err).ErrorCode() != "KMSInternalException" {
				t.Errorf("Decrypt: %v", err)
			}
			_, err = do(f, fresh, "ListKeyRotations", (*Service).ListKeyRotations, &awskms.ListKeyRotationsInput{KeyId: &id})
			if err == nil || APIError(err).ErrorCode() != "KMSInternalException" {
				t.Errorf("ListKeyRotations: %v", err)
			}
		})
	}
}
