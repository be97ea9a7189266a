package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/kms"
	"github.com/trent-kms/trent/store"
)

// recovery proves that the token opens what the database holds.
func (s ceremony) recovery(ctx context.Context) error {
	return s.cfg.on(ctx, func(d *domainSession) error {
		if err := s.begin("What was restored"); err != nil {
			return err
		}
		if err := s.compared("the deployment's id", uuid.UUID(d.deployment.ID).String(), "the transcript of the set-up", ends); err != nil {
			return err
		}
		all, err := s.generations(ctx, d)
		if err != nil {
			return err
		}
		for _, g := range all {
			if g.WrappedKeys > 0 && !strings.HasPrefix(g.OnToken, "whole") || g.SealedRows > 0 && g.OnToken == "" {
				return fmt.Errorf("this token lacks generation %d, which %d keys and %d rows need: restore a backup that holds it", g.Number, g.WrappedKeys, g.SealedRows)
			}
		}
		if err := s.begin("A key of each class and generation is opened in the HSM"); err != nil {
			return err
		}
		if err := s.openEach(ctx, d, all); err != nil {
			return err
		}
		if err := s.begin("The access keys are opened in the HSM"); err != nil {
			return err
		}
		return s.openCredentials(ctx, d)
	})
}

// openEach tries every domain key on something that is stored under it: that it
// is there does not say that it is the one of before.
func (s ceremony) openEach(ctx context.Context, d *domainSession, all []kms.GenerationStatus) error {
	stored, err := d.DB.OneOfEach(ctx)
	if err != nil {
		return fmt.Errorf("reading a stored key of each class and generation: %w", err)
	}
	for _, g := range all {
		for _, class := range hsm.Classes() {
			i := slices.IndexFunc(stored, func(k store.BackingKey) bool {
				return int64(hsm.EKT(k.EKT).Generation()) == g.Number && hsm.EKT(k.EKT).Class() == class
			})
			if i < 0 {
				if err := s.fact("generation %d, class %s: no KMS key has one, so there is none to try", g.Number, class); err != nil {
					return err
				}
				continue
			}
			if err := d.own.Opens(ctx, stored[i].EKT); err != nil {
				return fmt.Errorf("opening a %s key of KMS key %s, under generation %d: %w: the token's domain key is not the one that wrapped it; restore the backup that belongs to this database", class, stored[i].KeyID, g.Number, err)
			}
			if err := s.fact("generation %d, class %s: a key of KMS key %s opens", g.Number, class, stored[i].KeyID); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s ceremony) openCredentials(ctx context.Context, d *domainSession) error {
	principals, err := d.DB.Principals(ctx, d.deployment.Account)
	if err != nil {
		return fmt.Errorf("reading the principals: %w", err)
	}
	tried := false
	for _, p := range principals {
		keys, err := d.DB.AccessKeys(ctx, p.Account, p.ID)
		if err != nil {
			return fmt.Errorf("reading access keys: %w", err)
		}
		for _, k := range keys {
			tried = true
			if err := d.own.Opens(ctx, k.Secret); err != nil {
				return fmt.Errorf("opening access key %s: %w", k.ID, err)
			}
			if err := s.fact("access key %s of %s opens", k.ID, p.Name); err != nil {
				return err
			}
		}
	}
	if !tried {
		return s.fact("there is no access key to try: trent init made one, so find out who deleted it")
	}
	return nil
}
