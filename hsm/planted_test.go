package hsm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/miekg/pkcs11"
)

// TestWeakDomainKeyIsRefused plants domain keys that lack one thing of what
// CreateDomain makes: whatever it is, neither opening nor initialising may
// take the key for Trent's own.
func TestWeakDomainKeyIsRefused(t *testing.T) {
	plant := func(t *testing.T, size int, template []*pkcs11.Attribute) error {
		d := newDomain(t, nil)
		onKeeper(t, d, func(s *session, keys *domainKeys) error {
			s.destroy(keys.wrap[classAES])
			nested, free := nestedTemplate(template)
			defer free()
			planted := append(tokenKeyTemplate(testDomain.label(domainKeyRole(classAES), 1), testDomain.object(1, 1), pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP),
				attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
				attr(pkcs11.CKA_VALUE_LEN, size), attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested))
			_, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), planted)
			return deviceError("planting", err)
		})
		_, err := d.t.OpenDomain(t.Context(), testDomain)
		if again := d.t.CreateDomain(t.Context(), testDomain); (again == nil) != (err == nil) {
			t.Errorf("opening says %v, initialising %v", err, again)
		}
		return err
	}
	whole := unwrapTemplate(classAES, Locked)
	t.Run("whole", func(t *testing.T) {
		if err := plant(t, aesKeySize, whole); err != nil {
			t.Fatalf("a domain key as Trent makes it: %v", err)
		}
	})
	t.Run("128 bits", func(t *testing.T) {
		if err := plant(t, 16, whole); !errors.Is(err, ErrDomainConflict) {
			t.Errorf("a domain key of 128 bits: %v", err)
		}
	})
	for i, a := range whole {
		if a.Type == pkcs11.CKA_CLASS || a.Type == pkcs11.CKA_PRIVATE {
			continue // only secret keys can be AES-unwrapped; PRIVATE protects from nobody who has the PIN
		}
		t.Run(fmt.Sprintf("0x%X", a.Type), func(t *testing.T) {
			weak := append(append([]*pkcs11.Attribute(nil), whole[:i]...), whole[i+1:]...)
			if err := plant(t, aesKeySize, weak); !errors.Is(err, ErrDomainConflict) {
				t.Errorf("a domain key whose unwrap template lacks attribute 0x%X: %v", a.Type, err)
			}
		})
	}
}
