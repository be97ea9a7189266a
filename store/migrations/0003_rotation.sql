-- Columns that are added to a sealed table have a default, and are left out of
-- the MAC while they hold it: store/row.go.

-- +goose Up
ALTER TABLE keys
    ADD COLUMN rotation_period_days integer NOT NULL DEFAULT 0, -- 0: no automatic rotation
    ADD COLUMN next_rotation        timestamptz,
    ADD COLUMN on_demand_rotations  integer NOT NULL DEFAULT 0,
    ADD COLUMN backing_key_set      bytea NOT NULL DEFAULT '';
CREATE INDEX keys_by_next_rotation ON keys (next_rotation) WHERE next_rotation IS NOT NULL;

ALTER TABLE backing_keys
    ADD COLUMN number        integer NOT NULL DEFAULT 0,
    ADD COLUMN rotation_type text NOT NULL DEFAULT '',
    ADD COLUMN rotated       timestamptz;
DROP INDEX backing_keys_of_key;
-- A rotation that two hosts make at once cannot be written twice.
CREATE UNIQUE INDEX backing_keys_of_key ON backing_keys (account, region, key_id, number);

-- Hints, not sealed: they grant nothing and name no key material.
CREATE TABLE key_last_usage (
    account    text COLLATE "C" NOT NULL,
    region     text COLLATE "C" NOT NULL,
    key_id     text COLLATE "C" NOT NULL,
    operation  text NOT NULL,
    used       timestamptz NOT NULL,
    event_id   text NOT NULL,
    request_id text NOT NULL,
    PRIMARY KEY (account, region, key_id)
);

-- Since when uses are noted: keys that are older may have been used before.
CREATE TABLE key_usage_tracking (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    since     timestamptz NOT NULL DEFAULT now()
);
INSERT INTO key_usage_tracking DEFAULT VALUES;
