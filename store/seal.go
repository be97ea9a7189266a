package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Sealer makes and checks MACs with a key that never leaves the HSM. Sum uses
// the active generation of the MAC key and names it. Verify answers false only
// if the MAC is not that of the message under that generation; whatever keeps
// it from finding out is an error.
type Sealer interface {
	Sum(ctx context.Context, message []byte) (generation uint32, mac []byte, err error)
	Verify(ctx context.Context, generation uint32, message, mac []byte) (ok bool, err error)
}

// encodingVersion is the version of the grammar below.
const encodingVersion = 1

// The MAC of a row is made over the SHA-256 digest (so that the HSM sees 32
// bytes whatever the size of a policy) of
//
//	message = text(table) int(encoding version) int(MAC generation)
//	          bytes(deployment id) int(number of fields) field*
//	field   = text(column name) value
//	value   = text | bytes | int | bool | time | maybe | set
//	text    = length octets             UTF-8
//	bytes   = length octets
//	int     = length(8) 8OCTET          two's complement
//	bool    = int                       0 or 1
//	time    = int                       microseconds since 1970
//	maybe   = length(0) | time          a time that may be absent
//	set     = int(number of members) member*
//	member  = bytes                     sorted by content; each a message part of its own
//	length  = 4OCTET
//
// all big-endian. Account, region, identity and row version are fields. Every
// element has its length in front and every list its count, so no two rows
// have the same message. Which columns are fields: see sealed.
type message struct{ b []byte }

func (m *message) bytes(p []byte) {
	m.b = binary.BigEndian.AppendUint32(m.b, uint32(len(p))) // #nosec G115 -- a column is at most 1 GB
	m.b = append(m.b, p...)
}

func (m *message) text(s string) {
	m.b = binary.BigEndian.AppendUint32(m.b, uint32(len(s))) // #nosec G115 -- a column is at most 1 GB
	m.b = append(m.b, s...)
}

func (m *message) int(n int64) {
	m.b = binary.BigEndian.AppendUint32(m.b, 8)
	m.b = binary.BigEndian.AppendUint64(m.b, uint64(n)) // #nosec G115 -- two's complement is meant
}

// set adds members, whose order carries no meaning.
func (m *message) set(members [][]byte) {
	slices.SortFunc(members, bytes.Compare)
	m.int(int64(len(members)))
	for _, p := range members {
		m.bytes(p)
	}
}

// value adds the value that a column points to.
func (m *message) value(v any) error {
	switch v := v.(type) {
	case *string:
		if !storable(*v) {
			return ErrUnstorable
		}
		m.text(*v)
	case *[]byte:
		m.bytes(*v)
	case *[16]byte:
		m.bytes(v[:])
	case *int64:
		m.int(*v)
	case *int32:
		m.int(int64(*v))
	case *bool:
		m.int(map[bool]int64{true: 1}[*v])
	case *time.Time:
		m.int(v.UnixMicro())
	case **time.Time:
		if *v == nil {
			m.bytes(nil)
		} else {
			m.int((*v).UnixMicro())
		}
	case *[]Tag:
		return m.tags(*v)
	case *[]string:
		return m.texts(*v)
	default:
		return fmt.Errorf("encoding a %T: not a type of the grammar", v)
	}
	return nil
}

func (m *message) tags(tags []Tag) error {
	members := make([][]byte, len(tags))
	for i, t := range tags {
		if !storable(t.Key) || !storable(t.Value) {
			return ErrUnstorable
		}
		var member message
		member.text(t.Key)
		member.text(t.Value)
		members[i] = member.b
	}
	m.set(members)
	return nil
}

// texts adds a set whose members are the texts' bytes.
func (m *message) texts(texts []string) error {
	members := make([][]byte, len(texts))
	for i, t := range texts {
		if !storable(t) {
			return ErrUnstorable
		}
		members[i] = []byte(t)
	}
	m.set(members)
	return nil
}

func storable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// digest is what the HSM makes the MAC over.
func digest(deployment [16]byte, generation uint32, r row) ([]byte, error) {
	columns := sealed(r)
	var m message
	m.text(r.table())
	m.int(encodingVersion)
	m.int(int64(generation))
	m.bytes(deployment[:])
	m.int(int64(len(columns)))
	for _, c := range columns {
		m.text(c.name)
		if err := m.value(c.value); err != nil {
			return nil, fmt.Errorf("sealing column %s of %s: %w", c.name, r.table(), err)
		}
	}
	sum := sha256.Sum256(m.b)
	return sum[:], nil
}

// sealing is a MAC key in use for a deployment.
type sealing struct {
	deployment [16]byte
	sealer     Sealer
	// generation is the one that Sum used last: a guess, since the message
	// names the generation that only Sum knows.
	generation atomic.Uint32
}

// SetSealer makes sealed rows readable and writable. Before it, only the
// deployment row can be read, unverified: it names the domain to open.
func (db *DB) SetSealer(deployment [16]byte, s Sealer) {
	keys := &sealing{deployment: deployment, sealer: s}
	keys.generation.Store(1)
	db.sealing.Store(keys)
}

// seal is the MAC of one row.
type seal struct {
	generation uint32
	mac        []byte
}

// seal makes the MAC of r as it stands.
func (db *DB) seal(ctx context.Context, r row) (seal, error) {
	keys := db.sealing.Load()
	if keys == nil {
		return seal{}, ErrNoSealer
	}
	return keys.seal(ctx, r)
}

func (keys *sealing) seal(ctx context.Context, r row) (seal, error) {
	// A second round is needed only when the MAC key has just been renewed.
	for range 3 {
		guess := keys.generation.Load()
		message, err := digest(keys.deployment, guess, r)
		if err != nil {
			return seal{}, err
		}
		generation, mac, err := keys.sealer.Sum(ctx, message)
		if err != nil {
			return seal{}, fmt.Errorf("sealing row of %s: %w", r.table(), err)
		}
		if generation == guess {
			return seal{generation, mac}, nil
		}
		keys.generation.Store(generation)
	}
	return seal{}, errors.New("sealing row: the MAC key's generation does not settle")
}

// verify refuses r with *ErrTampered unless its MAC holds.
func (db *DB) verify(ctx context.Context, r row, s seal) error {
	keys := db.sealing.Load()
	if keys == nil {
		return ErrNoSealer
	}
	message, err := digest(keys.deployment, s.generation, r)
	if err != nil {
		return db.tamperedRow(r.table(), r.identity(), err.Error())
	}
	// The HSM may be ill rather than the row: believe a refusal only from a
	// device that has just verified a MAC of its own, and when repeated. That
	// it could not answer says nothing about the row.
	ok, err := keys.sealer.Verify(ctx, s.generation, message, s.mac)
	if !ok && err == nil {
		if err = keys.probe(ctx); err == nil {
			ok, err = keys.sealer.Verify(ctx, s.generation, message, s.mac)
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("verifying row of %s: %w", r.table(), err)
	case !ok:
		return db.tamperedRow(r.table(), r.identity(), "its MAC does not hold")
	}
	return nil
}

// errIll says that the device refuses what it has made itself.
var errIll = errors.New("the HSM refuses a MAC that it has just made")

func (keys *sealing) probe(ctx context.Context) error {
	probe := sha256.Sum256([]byte("trent MAC key probe"))
	generation, mac, err := keys.sealer.Sum(ctx, probe[:])
	if err != nil {
		return fmt.Errorf("probing the MAC key: %w", err)
	}
	ok, err := keys.sealer.Verify(ctx, generation, probe[:], mac)
	if err != nil {
		return fmt.Errorf("probing the MAC key: %w", err)
	}
	if !ok {
		return errIll
	}
	return nil
}

// tamperedRow counts and reports a row that someone else has written.
func (db *DB) tamperedRow(table, id, reason string) error {
	db.tampered.WithLabelValues(table).Inc()
	db.log.Error("row refused: it is not as Trent wrote it", "table", table, "id", id, "reason", reason)
	return &ErrTampered{Table: table, ID: id, Reason: reason}
}
