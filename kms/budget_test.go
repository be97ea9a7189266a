package kms

import (
	"errors"
	"sync"
	"testing"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	dto "github.com/prometheus/client_model/go"
)

// A backing key whose budget nears its end is replaced, once, while hosts
// encrypt; nobody is refused.
func TestBudgetRenewsBackingKey(t *testing.T) {
	f := newFleet(t)
	hosts := []*Service{f.host(t, "a"), f.host(t, "b")}
	for _, s := range hosts {
		s.budgets.block, s.budgets.limit, s.budgets.reserve = 8, 512, 256
	}
	id := createKey(t, f, hosts[0])
	var group sync.WaitGroup
	for _, s := range hosts {
		group.Go(func() {
			for range 400 {
				if _, err := do(f, s, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	all, events := materials(t, f, hosts[0], id), rotateEvents(t, hosts[0], id)
	if len(all) < 3 || len(all) > 5 || len(events) != len(all)-1 {
		t.Errorf("%d materials, %d events after 800 messages", len(all), len(events))
	}
	if out := status(t, f, hosts[0], id); out.KeyRotationEnabled {
		t.Errorf("replacing a backing key switched rotation on: %+v", out)
	}
}

// Used up all the same, the caller is asked to try again, and then finds the
// new one.
func TestBudgetExhausted(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	s.budgets.block, s.budgets.limit, s.budgets.reserve = 8, 16, -1 // never ahead of need
	id := createKey(t, f, s)
	refused := 0
	for range 40 {
		_, err := do(f, s, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		var unavailable *types.KeyUnavailableException
		if errors.As(err, &unavailable) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n := len(materials(t, f, s, id)); n < 3 || refused > n-1 {
		t.Errorf("%d refusals, %d materials", refused, n)
	}
	var counted dto.Metric
	if err := s.budgets.refused.Write(&counted); err != nil || int(counted.GetCounter().GetValue()) != refused {
		t.Errorf("%d refusals, counted %v, %v", refused, counted.GetCounter(), err)
	}
}
