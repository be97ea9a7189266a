-- +goose Up
ALTER TABLE deployment ADD COLUMN domain_set bytea NOT NULL DEFAULT '';

-- Generations of the domain keys and the MAC key. Without any row, generation 1
-- is the active one: store/generation.go.
CREATE TABLE domain_generations (
    number           bigint PRIMARY KEY,
    version          bigint NOT NULL,
    profile          text NOT NULL,
    state            text NOT NULL CHECK (state IN ('created', 'active', 'superseded', 'retiring', 'retired', 'destroyed')),
    holders          text NOT NULL, -- JSON: serial numbers of the tokens that hold it
    backup_confirmed timestamptz,
    backup_by        text NOT NULL,
    created          timestamptz NOT NULL,
    activated        timestamptz,
    superseded       timestamptz,
    destroyed        timestamptz,
    mac_generation   bigint NOT NULL,
    mac              bytea NOT NULL
);
