-- +goose Up
ALTER TABLE domain_generations ADD COLUMN proof text NOT NULL DEFAULT '';

-- Tokens that hold the domain's keys. Without any row there is one, which
-- nobody enrolled. The deployment's domain_set binds them: store/generation.go.
CREATE TABLE domain_members (
    serial         text PRIMARY KEY,
    version        bigint NOT NULL,
    label          text NOT NULL,
    fingerprint    text NOT NULL,
    state          text NOT NULL CHECK (state IN ('enrolled', 'removed')),
    enrolled       timestamptz NOT NULL,
    enrolled_by    text NOT NULL,
    removed        timestamptz,
    removed_by     text NOT NULL,
    mac_generation bigint NOT NULL,
    mac            bytea NOT NULL
);
