package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/trent-kms/trent/kms"
)

type ceremonyEnrolCmd struct{ ceremonySettings }

// Help implements kong.HelpProvider.
func (*ceremonyEnrolCmd) Help() string {
	return `Initialise the new token and its user PIN with the vendor's tool, give it a [[hsm-member]] table beside those of all other members, and examine it with trent doctor --member NAME. The fingerprints are read on another machine meanwhile: see trent domain fingerprint --help.

Example:

    trent ceremony enrol --config /etc/trent/trent.toml --transcript enrolment.txt`
}

// Run holds the ceremony.
func (c *ceremonyEnrolCmd) Run(ctx context.Context) error {
	return c.hold(ctx, func(s ceremony) error {
		return s.cfg.onMembers(ctx, func(m *membersSession) error { return s.enrol(ctx, m) })
	})
}

func (s ceremony) enrol(ctx context.Context, m *membersSession) error {
	if err := s.members(ctx, m); err != nil {
		return err
	}
	if err := s.begin("The members' enrolment keys"); err != nil {
		return err
	}
	confirmed, err := m.Confirm(ctx, func(each kms.MemberAtHand, generation int64, fingerprint string) error {
		if err := s.fact("member %s, token %q, serial number %s: %s %s, firmware %s", each.Name, each.Info.Label, each.Info.Serial,
			each.Info.Manufacturer, each.Info.Model, each.Info.Firmware); err != nil {
			return err
		}
		// All of it: pairs whose fingerprints end alike are made in minutes.
		return s.compared(fmt.Sprintf("the fingerprint of member %s", each.Name), fingerprint,
			fmt.Sprintf("another machine: trent domain fingerprint --generation %d --member %s", generation, each.Name), len(fingerprint))
	})
	if err != nil {
		return err //nolint:wrapcheck // says it all
	}
	if err := s.begin("A generation that all members hold"); err != nil {
		return err
	}
	if err := s.agree("This machine was installed for the purpose, or is trusted as one that was: for as long as the next step runs, it could have the new keys wrapped for somebody else."); err != nil {
		return err
	}
	var unwritten error
	m.Progress = func(step string) { unwritten = errors.Join(unwritten, s.fact("%s", step)) }
	if err := m.enrol(ctx, confirmed); err != nil {
		return errors.Join(err, unwritten)
	}
	if unwritten != nil {
		return unwritten
	}
	return s.members(ctx, m)
}

// members records who there is.
func (s ceremony) members(ctx context.Context, m *membersSession) error {
	if err := s.begin("The members"); err != nil {
		return err
	}
	if err := s.fact("deployment %s, account %s", uuid.UUID(m.deployment.ID), m.deployment.Account); err != nil {
		return err
	}
	all, err := m.List(ctx)
	if err != nil {
		return err //nolint:wrapcheck // says it all
	}
	for _, each := range all {
		if err := s.fact("%s, token %q, serial number %s: %s; whole generations: %s; fingerprint: %s%s", cmp.Or(each.Name, "without a name here"), each.Label, each.Serial,
			cmp.Or(each.State, "not enrolled"), cmp.Or(strings.Trim(fmt.Sprint(each.Holds), "[]"), "none"), cmp.Or(each.Fingerprint, "none"), faultOf(each)); err != nil {
			return err
		}
	}
	return nil
}

func faultOf(m kms.MemberStatus) string {
	if m.Fault == "" {
		return ""
	}
	return "; " + m.Fault
}
