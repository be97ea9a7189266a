package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// AuditBatch is what one commit adds to the audit log of a host. Sequence
// numbers and hashes continue over boots.
type AuditBatch struct {
	Host              string
	BootID            [16]byte // random, one per process
	FirstSeq, LastSeq int64
	// PrevHash and LastHash are the chain's hash before and after the batch:
	// hash_n = SHA-256(hash_{n-1} ‖ record n), beginning with 32 zero octets.
	PrevHash, LastHash []byte
	Records            []byte // JSON Lines, each ended by a line feed
	MACGeneration      uint32
	MAC                []byte
}

// insertAudit refuses, with a prev_hash that is NULL, a batch that does not
// follow the newest one of its host: a database that was failed over with loss
// or set back may look whole to a writer whose connections are all new.
const insertAudit = `
	INSERT INTO audit_batches (host, boot_id, first_seq, last_seq, prev_hash, last_hash, records, mac_generation, mac)
	VALUES ($1, $2, $3, $4,
		CASE WHEN $5 = coalesce((SELECT last_hash FROM audit_batches WHERE host = $1 ORDER BY first_seq DESC LIMIT 1),
			decode(repeat('00', 32), 'hex')) THEN $5::bytea END,
		$6, $7, $8, $9)
	RETURNING (SELECT seq FROM change_sequence)`

func (b *AuditBatch) table() string    { return "audit_batches" }
func (b *AuditBatch) identity() string { return fmt.Sprintf("%s/%d", b.Host, b.FirstSeq) }

// columns leaves out records: last_hash stands for them.
func (b *AuditBatch) columns() []column {
	return []column{
		{"host", &b.Host}, {"boot_id", &b.BootID}, {"first_seq", &b.FirstSeq}, {"last_seq", &b.LastSeq},
		{"prev_hash", &b.PrevHash}, {"last_hash", &b.LastHash},
	}
}

func (b *AuditBatch) arguments() []any {
	return []any{
		b.Host, b.BootID, b.FirstSeq, b.LastSeq, b.PrevHash, b.LastHash,
		b.Records, int64(b.MACGeneration), b.MAC,
	}
}

// ChainHash is the chain's hash after record, which has no line feed.
func ChainHash(before [sha256.Size]byte, record []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(before[:])
	h.Write(record)
	var after [sha256.Size]byte
	h.Sum(after[:0])
	return after
}

// SealAudit sets MACGeneration and MAC, made by sealer (nil = the one that
// seals rows). The MAC covers, by the grammar of sealed rows, all of the
// batch: Records by way of LastHash.
func (db *DB) SealAudit(ctx context.Context, sealer Sealer, b *AuditBatch) error {
	keys := db.sealing.Load()
	if keys == nil {
		return ErrNoSealer
	}
	if sealer != nil && sealer != keys.sealer {
		keys = &sealing{deployment: keys.deployment, sealer: sealer}
	}
	s, err := keys.seal(ctx, b)
	if err != nil {
		return err
	}
	b.MACGeneration, b.MAC = s.generation, s.mac
	return nil
}

// VerifyAudit refuses with *ErrTampered a batch whose MAC does not hold.
// Records are not looked at: see audit's verification of the chain.
func (db *DB) VerifyAudit(ctx context.Context, b *AuditBatch) error {
	return db.verify(ctx, b, seal{b.MACGeneration, b.MAC})
}

// AppendAudit commits b in one round trip, and returns the change sequence as
// it stood when the statement began: after every call in the batch was
// authorised. Errors without ErrInDoubt mean that nothing was written.
func (db *DB) AppendAudit(ctx context.Context, b *AuditBatch) (seq int64, err error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return 0, fmt.Errorf("connecting to Postgres: %w", fault(err))
	}
	defer conn.Release()
	err = conn.QueryRow(ctx, insertAudit, b.arguments()...).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("appending audit records: %w", commitFault(err))
	}
	return seq, nil
}

const selectAudit = `
	SELECT host, boot_id, first_seq, last_seq, prev_hash, last_hash, records, mac_generation, mac
	FROM audit_batches `

func scanAudit(row pgx.CollectableRow) (AuditBatch, error) {
	var b AuditBatch
	err := row.Scan(&b.Host, &b.BootID, &b.FirstSeq, &b.LastSeq, &b.PrevHash, &b.LastHash,
		&b.Records, &b.MACGeneration, &b.MAC)
	return b, err
}

// AuditBatches returns up to limit batches of a host that begin at firstSeq or
// later, in order, unverified.
func (db *DB) AuditBatches(ctx context.Context, host string, firstSeq int64, limit int) ([]AuditBatch, error) {
	rows, _ := db.pool.Query(ctx, selectAudit+`
		WHERE host = $1 AND first_seq >= $2
		ORDER BY first_seq LIMIT $3`, host, firstSeq, limit)
	batches, err := pgx.CollectRows(rows, scanAudit)
	if err != nil {
		return nil, fmt.Errorf("reading audit batches: %w", fault(err))
	}
	return batches, nil
}

// LastAuditBatch returns the newest batch of a host, unverified, or ErrNotFound.
func (db *DB) LastAuditBatch(ctx context.Context, host string) (AuditBatch, error) {
	rows, _ := db.pool.Query(ctx, selectAudit+"WHERE host = $1 ORDER BY first_seq DESC LIMIT 1", host)
	b, err := pgx.CollectOneRow(rows, scanAudit)
	if err != nil {
		return AuditBatch{}, fmt.Errorf("reading the newest audit batch: %w", fault(err))
	}
	return b, nil
}

// AuditHead returns the sequence number and the chain's hash after the newest
// record of a host: 0 and 32 zero octets if there is none.
func (db *DB) AuditHead(ctx context.Context, host string) (lastSeq int64, lastHash []byte, err error) {
	b, err := db.LastAuditBatch(ctx, host)
	if errors.Is(err, ErrNotFound) {
		return 0, make([]byte, sha256.Size), nil
	}
	return b.LastSeq, b.LastHash, err
}
