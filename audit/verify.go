package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/trent-kms/trent/store"
)

// VerifyChain reads the whole log of a host and demands that no record was
// altered, removed or added: sequence, hashes and the MAC of each batch. That
// the newest batches were cut off cannot be seen from within. It returns how
// many records it saw.
func VerifyChain(ctx context.Context, db *store.DB, host string) (records int64, err error) {
	var at head
	for {
		batches, err := db.AuditBatches(ctx, host, at.seq+1, 100)
		if err != nil {
			return at.seq, err
		}
		for i := range batches {
			if at, err = follow(ctx, db, at, &batches[i]); err != nil {
				return at.seq, err
			}
		}
		if len(batches) == 0 {
			return at.seq, nil
		}
	}
}

// follow checks one batch on top of at.
func follow(ctx context.Context, db *store.DB, at head, b *store.AuditBatch) (head, error) {
	if err := db.VerifyAudit(ctx, b); err != nil {
		return at, err
	}
	if b.FirstSeq != at.seq+1 || !bytes.Equal(b.PrevHash, at.hash[:]) {
		return at, fmt.Errorf("%w: batch %d of host %q does not follow record %d", ErrChain, b.FirstSeq, b.Host, at.seq)
	}
	next := at
	for line := range bytes.Lines(b.Records) {
		next.hash = store.ChainHash(next.hash, bytes.TrimSuffix(line, []byte("\n")))
		next.seq++
	}
	if next != headOf(*b) || len(b.LastHash) != sha256.Size {
		return at, fmt.Errorf("%w: records %d to %d of host %q are not those that were sealed", ErrChain, b.FirstSeq, b.LastSeq, b.Host)
	}
	return next, nil
}
