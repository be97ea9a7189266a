-- +goose Up
ALTER TABLE keys
    ADD COLUMN grant_count integer NOT NULL DEFAULT 0,
    ADD COLUMN grant_pages bytea NOT NULL DEFAULT ''; -- store/grantset.go

CREATE TABLE grants (
    account            text COLLATE "C" NOT NULL,
    region             text COLLATE "C" NOT NULL,
    key_id             text COLLATE "C" NOT NULL,
    id                 text COLLATE "C" NOT NULL,
    version            bigint NOT NULL,
    name               text NOT NULL,
    grantee            text COLLATE "C" NOT NULL,
    retiring_principal text COLLATE "C" NOT NULL, -- empty if there is none
    issuing_account    text NOT NULL,
    operations         text NOT NULL, -- separated by commas
    constraints        text NOT NULL, -- JSON, kept byte for byte; empty if there are none
    request_digest     bytea NOT NULL, -- what CreateGrant was asked for
    created            timestamptz NOT NULL,
    mac_generation     bigint NOT NULL,
    mac                bytea NOT NULL,
    PRIMARY KEY (account, region, key_id, id),
    FOREIGN KEY (account, region, key_id) REFERENCES keys (account, region, id)
        DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX grants_by_request ON grants (account, region, key_id, request_digest) WHERE name <> '';
CREATE INDEX grants_by_retiring_principal ON grants (account, region, retiring_principal, key_id, id)
    WHERE retiring_principal <> '';

-- Which grants a key has; each page's version stands in the key's row.
CREATE TABLE grant_pages (
    account        text COLLATE "C" NOT NULL,
    region         text COLLATE "C" NOT NULL,
    key_id         text COLLATE "C" NOT NULL,
    number         integer NOT NULL CHECK (number BETWEEN 0 AND 255),
    version        bigint NOT NULL,
    members        bytea NOT NULL,
    mac_generation bigint NOT NULL,
    mac            bytea NOT NULL,
    PRIMARY KEY (account, region, key_id, number),
    FOREIGN KEY (account, region, key_id) REFERENCES keys (account, region, id)
        DEFERRABLE INITIALLY DEFERRED
);
