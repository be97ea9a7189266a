package testenv

import (
	"context"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestPostgresIsDurableAndPrivate(t *testing.T) {
	url := Postgres(t)
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		if got := show(t, url, setting); got != "on" {
			t.Errorf("%s = %s, want on", setting, got)
		}
	}
	if got := show(t, url, "listen_addresses"); got != "" {
		t.Errorf("listen_addresses = %q, want none", got)
	}
	if other := Postgres(t); other == url {
		t.Errorf("two tests got one database, %s", url)
	}
}

func TestRestartPostgresKeepsData(t *testing.T) {
	url := Postgres(t)
	ctx := context.Background()
	need(t, execute(ctx, url, "CREATE TABLE kept AS SELECT 1 AS n"))
	RestartPostgres(t)
	need(t, execute(ctx, url, "SELECT 1 / count(*) FROM kept")) // fails if it is empty
}

func TestTokensDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range batch + 1 {
		tok := SoftHSM(t)
		if seen[tok.Label] {
			t.Errorf("token %s given out twice", tok.Label)
		}
		seen[tok.Label] = true
		if got := os.Getenv("SOFTHSM2_CONF"); got != tok.Conf {
			t.Errorf("SOFTHSM2_CONF = %q, want %q", got, tok.Conf)
		}
	}
}

// One address given out twice would keep the second server from starting.
func TestAddressesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		address := Address(t)
		if seen[address] {
			t.Errorf("%s is given out twice", address)
		}
		seen[address] = true
	}
}

func show(t *testing.T, url, setting string) string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	need(t, err)
	defer conn.Close(ctx)
	var value string
	need(t, conn.QueryRow(ctx, "SELECT current_setting($1)", setting).Scan(&value))
	return value
}
