package main

import (
	"strings"

	"github.com/trent-kms/trent/hsm"
)

// report prints what was found, the conclusions last, where a person looks.
func (p *printer) report(r hsm.Report) {
	p.token(r)
	p.mechanisms(r)
	p.tries(r)
	if len(r.Verdicts) > 0 {
		p.printf("\nVerdict:\n")
	}
	for _, v := range r.Verdicts {
		p.printf("  %-8s %s", v.Verdict, v.Feature)
		if v.Why != "" {
			p.printf(": %s", v.Why)
		}
		p.printf("\n")
	}
	if len(r.Findings) > 0 {
		p.printf("\nFindings:\n")
	}
	for _, f := range r.Findings {
		p.printf("  %s: %s\n", f.Severity, f.Text)
	}
}

func (p *printer) token(r hsm.Report) {
	p.printf("Module:   %s\n", r.Module)
	if r.Token != nil {
		p.printf("Token:    %q, serial %s, %s %s, firmware %s\n", r.Token.Label, r.Token.Serial, r.Token.Manufacturer, r.Token.Model, r.Token.Firmware)
		p.printf("Library:  %s %s, PKCS#11 %s\n", r.Token.Library, r.Token.LibraryVersion, r.Token.CryptokiVersion)
	} else {
		p.printf("Token:    not found; the module shows %d\n", len(r.Tokens))
		for _, token := range r.Tokens {
			p.printf("          %q, serial %s\n", token.Label, token.Serial)
		}
	}
	for _, domain := range r.Domains {
		p.printf("Domain:   %s\n", domain)
	}
	if r.Vendor == nil {
		return
	}
	p.printf("Family:   %s\n", r.Vendor.Family)
	for _, note := range r.Vendor.Notes {
		p.printf("          %s [%s]\n", note.Text, note.Source)
	}
}

func (p *printer) wraps(checks []hsm.WrapCheck) {
	if len(checks) > 0 {
		p.printf("\nWrapping mechanisms:\n")
	}
	for _, w := range checks {
		state, detail := "refused", w.Detail
		switch {
		case len(w.Chosen) > 0:
			state, detail = "chosen", "for "+strings.Join(w.Chosen, " and ")+" keys"
		case w.Works:
			state = "possible"
		}
		p.printf("  %-8s %-28s %s  %s\n", state, w.Mechanism, w.Form, detail)
	}
}

func (p *printer) mechanisms(r hsm.Report) {
	if len(r.Mechanisms) > 0 {
		p.printf("\nMechanisms:\n")
	}
	for _, m := range r.Mechanisms {
		state := "present"
		switch {
		case !m.Present && m.Required:
			state = "MISSING"
		case !m.Present:
			state = "absent"
		}
		p.printf("  %-8s %-28s %s\n", state, m.Name, m.Purpose)
	}
	if len(r.KeySpecs) > 0 {
		p.printf("\nKey specs:\n")
	}
	for _, s := range r.KeySpecs {
		state := "works"
		if !s.Supported {
			state = "absent"
		}
		p.printf("  %-8s %-28s %s\n", state, s.Spec, s.Missing)
	}
}

// tries prints what was tried with throw-away objects.
func (p *printer) tries(r hsm.Report) {
	if len(r.Answers) > 0 {
		p.printf("\nKnown answers:\n")
	}
	for _, a := range r.Answers {
		p.printf("  %-8s %s (%s)\n", a.Result, a.Name, a.Source)
	}
	p.wraps(r.Wraps)
	if len(r.IVs) > 0 {
		p.printf("\nSources of IVs (--hsm-iv-source):\n")
	}
	for _, v := range r.IVs {
		state := "refused"
		switch {
		case v.Chosen:
			state = "chosen"
		case v.Works:
			state = "possible"
		}
		p.printf("  %-8s %-10s %s\n", state, v.Source, v.Detail)
	}
	if len(r.Rules) > 0 {
		p.printf("\nAttribute rules:\n")
	}
	for _, rule := range r.Rules {
		p.printf("  %-8s %s\n", rule.Result, rule.Name)
	}
	if len(r.Rates) > 0 {
		p.printf("\nRate of AES-256-GCM, 32 bytes:\n")
	}
	for _, rate := range r.Rates {
		p.printf("  %8.0f per second on %d sessions\n", rate.PerSecond, rate.Sessions)
	}
}
