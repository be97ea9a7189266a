package hsm

import (
	"errors"
	"fmt"
	"strings"
)

// MemberHealth is what is known of a member.
type MemberHealth struct {
	Name    string
	Serves  bool   // calls are made on it
	State   State  // of its token, or of what becomes of its worker
	Reason  string // why State is not StateReady, for operators
	Stopped bool   // for good: the PIN must be corrected
	Err     error  // why it does not serve
	Token   Info   // as it was when it was opened last
}

// String is one line for operators.
func (h MemberHealth) String() string {
	line := fmt.Sprintf("member %s: %s", h.Name, h.State)
	if h.Reason != "" {
		line += ": " + strings.ReplaceAll(h.Reason, "\n", "; ")
	}
	return line
}

func (d *spread) health() []MemberHealth {
	var all []MemberHealth
	for _, s := range d.seats {
		all = append(all, s.health())
	}
	return all
}

func (s *seat) health() MemberHealth {
	s.mu.Lock()
	h := MemberHealth{Name: s.name, State: StateRecovering, Stopped: s.stopped, Err: s.err, Token: s.info}
	s.mu.Unlock()
	t := s.target.Load()
	switch {
	case t != nil:
		token := t.health()
		h.Serves, h.Err, h.State, h.Reason = true, nil, token.State, token.Reason
		return h
	case h.Stopped:
		h.State = StateStopped
	case errors.Is(h.Err, errKilled), errors.Is(h.Err, errHung):
		h.State = StateHung
	}
	if h.Err != nil {
		h.Reason = h.Err.Error()
	}
	return h
}
