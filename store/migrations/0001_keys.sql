-- Rows with mac_generation and mac are sealed: store/seal.go. Text that is
-- compared or paged through sorts by its bytes, whatever the server's locale.

-- +goose Up
CREATE TABLE deployment (
    singleton         boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id             uuid NOT NULL,
    account        text NOT NULL,
    partition      text NOT NULL,
    state          text NOT NULL CHECK (state IN ('initialising', 'active')),
    version        bigint NOT NULL,
    created        timestamptz NOT NULL,
    mac_generation bigint NOT NULL,
    mac            bytea NOT NULL -- empty until the HSM's domain exists
);

CREATE TABLE principals (
    account        text COLLATE "C" NOT NULL,
    id             text COLLATE "C" NOT NULL,
    name           text COLLATE "C" NOT NULL,
    arn            text NOT NULL,
    admin          boolean NOT NULL,
    version        bigint NOT NULL,
    created        timestamptz NOT NULL,
    mac_generation bigint NOT NULL,
    mac            bytea NOT NULL,
    PRIMARY KEY (account, id),
    UNIQUE (account, name)
);

CREATE TABLE access_keys (
    id             text COLLATE "C" PRIMARY KEY,
    account        text COLLATE "C" NOT NULL,
    principal_id   text COLLATE "C" NOT NULL,
    secret         bytea NOT NULL, -- an EKT
    status         text NOT NULL,
    version        bigint NOT NULL,
    created        timestamptz NOT NULL,
    mac_generation bigint NOT NULL,
    mac            bytea NOT NULL,
    FOREIGN KEY (account, principal_id) REFERENCES principals (account, id)
        DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX access_keys_of_principal ON access_keys (account, principal_id);

CREATE TABLE keys (
    account                text COLLATE "C" NOT NULL,
    region                 text COLLATE "C" NOT NULL,
    id                     text COLLATE "C" NOT NULL,
    version                bigint NOT NULL,
    state                  text NOT NULL,
    spec                   text NOT NULL,
    usage                  text NOT NULL,
    origin                 text NOT NULL,
    description            text NOT NULL,
    policy                 text NOT NULL,
    tags                   jsonb NOT NULL,
    multi_region           boolean NOT NULL,
    created                timestamptz NOT NULL,
    deletion_date          timestamptz,
    pending_window_in_days integer NOT NULL,
    current_backing_key    uuid NOT NULL,
    mac_generation         bigint NOT NULL,
    mac                    bytea NOT NULL,
    PRIMARY KEY (account, region, id)
);
CREATE INDEX keys_by_deletion_date ON keys (deletion_date) WHERE deletion_date IS NOT NULL;

CREATE TABLE backing_keys (
    account        text COLLATE "C" NOT NULL,
    region         text COLLATE "C" NOT NULL,
    key_id         text COLLATE "C" NOT NULL,
    id             uuid PRIMARY KEY,
    version        bigint NOT NULL,
    ekt            bytea NOT NULL,
    material_id    text NOT NULL,
    provenance     bytea NOT NULL, -- JSON, kept byte for byte
    public_key     bytea NOT NULL, -- empty for a symmetric key
    created        timestamptz NOT NULL,
    mac_generation bigint NOT NULL,
    mac            bytea NOT NULL,
    FOREIGN KEY (account, region, key_id) REFERENCES keys (account, region, id)
        DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX backing_keys_of_key ON backing_keys (account, region, key_id);

CREATE TABLE encryption_budgets (
    backing_key    uuid PRIMARY KEY REFERENCES backing_keys (id) DEFERRABLE INITIALLY DEFERRED,
    version        bigint NOT NULL,
    reserved       bigint NOT NULL,
    mac_generation bigint NOT NULL,
    mac            bytea NOT NULL
);

CREATE TABLE aliases (
    account        text COLLATE "C" NOT NULL,
    region         text COLLATE "C" NOT NULL,
    name           text COLLATE "C" NOT NULL,
    key_id         text COLLATE "C" NOT NULL,
    version        bigint NOT NULL,
    created        timestamptz NOT NULL,
    updated        timestamptz NOT NULL,
    mac_generation bigint NOT NULL,
    mac            bytea NOT NULL,
    PRIMARY KEY (account, region, name),
    FOREIGN KEY (account, region, key_id) REFERENCES keys (account, region, id)
        DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX aliases_of_key ON aliases (account, region, key_id, name);

-- Keeps the quota without counting keys.
CREATE TABLE account_regions (
    account   text COLLATE "C" NOT NULL,
    region    text COLLATE "C" NOT NULL,
    key_count bigint NOT NULL CHECK (key_count >= 0),
    PRIMARY KEY (account, region)
);

-- One row. Each change takes the next number as its last act before its audit
-- record, and holds the row until it is committed: numbers become visible in
-- the order of commits.
CREATE TABLE change_sequence (
    singleton    boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    seq       bigint NOT NULL,
    pruned_to bigint NOT NULL -- changes up to here may be missing
) WITH (fillfactor = 10);
INSERT INTO change_sequence (seq, pruned_to) VALUES (0, 0);

CREATE TABLE changes (
    seq     bigint NOT NULL,
    account text NOT NULL,
    region  text NOT NULL,
    kind    text NOT NULL,
    id      text NOT NULL,
    PRIMARY KEY (seq, kind, account, region, id)
);
