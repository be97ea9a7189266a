-- +goose Up
ALTER TABLE keys
    ADD COLUMN material_missing boolean NOT NULL DEFAULT false,
    ADD COLUMN material_expires timestamptz;

ALTER TABLE backing_keys -- ekt is empty while imported material is deleted or has expired
    ADD COLUMN pending     boolean NOT NULL DEFAULT false,
    ADD COLUMN expires     timestamptz,
    ADD COLUMN description text NOT NULL DEFAULT '';
CREATE INDEX backing_keys_by_expiry ON backing_keys (expires) WHERE expires IS NOT NULL;
