package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/hsm"
)

// memberTable is a table [[hsm-member]] of the configuration file: one token of
// several that hold the same domain. What it leaves out is as the setting of
// that name says outside of all tables.
type memberTable struct {
	Name        string   `json:"name"` // in logs and metrics; the token's label otherwise
	Module      string   `json:"hsm-module"`
	Token       string   `json:"hsm-token"`
	Serial      string   `json:"hsm-serial"`
	Sessions    int      `json:"hsm-sessions"`
	Handles     int      `json:"hsm-handles"`
	IVSource    string   `json:"hsm-iv-source"`
	PINFile     string   `json:"pin-file"`
	Environment []string `json:"environment"` // NAME=value for the vendor's library
}

type memberTables []memberTable

// Decode implements kong.MapperValue on the JSON that configFile makes of the
// tables.
func (m *memberTables) Decode(ctx *kong.DecodeContext) error {
	var text string
	if err := ctx.Scan.PopValueInto("hsm-member", &text); err != nil {
		return fmt.Errorf("reading [[hsm-member]]: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(m); err != nil {
		return fmt.Errorf("reading [[hsm-member]] (its settings are name, hsm-module, hsm-token, hsm-serial, hsm-sessions, hsm-handles, hsm-iv-source, pin-file and environment): %w", err)
	}
	return nil
}

// members are the tables, each filled up from the settings outside; without
// tables, the one token that those name.
func (s hsmSettings) members() []memberTable {
	if len(s.HSMMembers) == 0 {
		return []memberTable{{Module: s.HSMModule, Token: s.HSMToken, Serial: s.HSMSerial, Sessions: s.HSMSessions, Handles: s.HSMHandles, IVSource: s.HSMIVSource}}
	}
	members := append([]memberTable(nil), s.HSMMembers...)
	for i := range members {
		m := &members[i]
		m.Module = cmp.Or(m.Module, s.HSMModule)
		if m.Serial == "" {
			m.Token = cmp.Or(m.Token, s.HSMToken)
		}
		m.Sessions = cmp.Or(m.Sessions, s.HSMSessions)
		m.Handles = cmp.Or(m.Handles, s.HSMHandles)
		m.IVSource = cmp.Or(m.IVSource, s.HSMIVSource)
	}
	return members
}

// errUnnamed means that a setting is missing without which there is no HSM.
var errUnnamed = errors.New("is named")

// config reads the PINs and checks that every token is named. The ID is left
// to whoever has read it from the database.
func (s hsmSettings) config(log *slog.Logger, metrics prometheus.Registerer) (hsm.DomainConfig, error) {
	cfg := hsm.DomainConfig{
		Isolation:     hsm.Isolation(s.HSMIsolation),
		Limits:        hsm.Limits{Call: s.HSMDeadline, Make: s.HSMMakeDeadline},
		RetireUnwraps: s.HSMRetire,
		Logger:        log,
		Metrics:       metrics,
	}
	pins := map[string]hsm.PIN{} // by file: the variable can be read once only
	for _, m := range s.members() {
		if m.Module == "" {
			return cfg, fmt.Errorf("no PKCS#11 library %w: set --hsm-module to the one of your HSM's vendor (SoftHSM's is often /usr/lib/softhsm/libsofthsm2.so)", errUnnamed)
		}
		if m.Token == "" && m.Serial == "" {
			return cfg, fmt.Errorf("no token %w: set --hsm-token to its label, or --hsm-serial", errUnnamed)
		}
		m.PINFile = cmp.Or(m.PINFile, s.PINFile)
		pin, known := pins[m.PINFile]
		if !known {
			read, err := pinSecret(m.PINFile).read(log)
			if err != nil {
				return cfg, err
			}
			pin = hsm.NewPIN(read)
			clear(read)
			pins[m.PINFile] = pin
		}
		cfg.Members = append(cfg.Members, hsm.MemberConfig{
			Name: m.Name, Environment: m.Environment,
			Config: hsm.Config{
				Module: m.Module, TokenLabel: m.Token, TokenSerial: m.Serial, PIN: pin,
				Sessions: m.Sessions, HandleCache: m.Handles, IVSource: hsm.IVSource(m.IVSource), Logger: log,
			},
		})
	}
	return cfg, nil
}
