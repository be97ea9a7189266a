package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// commitRate is how many rows per second one connection commits, one after
// the other.
func commitRate(ctx context.Context, url string, d time.Duration) (float64, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way on it
	if _, err := conn.Exec(ctx, "CREATE TABLE trent_bench (line text)"); err != nil {
		return 0, fmt.Errorf("making a table: %w", err)
	}
	n := 0
	start := time.Now()
	for time.Since(start) < d {
		if _, err := conn.Exec(ctx, "INSERT INTO trent_bench VALUES (repeat('x', 1000))"); err != nil {
			return 0, fmt.Errorf("committing: %w", err)
		}
		n++
	}
	rate := float64(n) / time.Since(start).Seconds()
	if _, err := conn.Exec(ctx, "DROP TABLE trent_bench"); err != nil {
		return 0, fmt.Errorf("dropping a table: %w", err)
	}
	return rate, nil
}
