-- Related multi-Region keys are one row of keys per Region, with the same id.

-- +goose Up
ALTER TABLE keys
    ADD COLUMN primary_region  text NOT NULL DEFAULT '', -- empty for a single-Region key
    ADD COLUMN replica_regions text[] NOT NULL DEFAULT '{}';

-- A backing key of theirs has a row in each Region, and one budget for all.
ALTER TABLE encryption_budgets DROP CONSTRAINT encryption_budgets_backing_key_fkey;
ALTER TABLE backing_keys DROP CONSTRAINT backing_keys_pkey, ADD PRIMARY KEY (account, region, id);
CREATE INDEX backing_keys_by_id ON backing_keys (id);
