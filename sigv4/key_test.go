package sigv4

import (
	"sync"
	"testing"
)

// One key serves requests of all kinds at the same time: what one leaves
// behind in it must not let another in, or keep it out.
func TestKeyIsShared(t *testing.T) {
	key, err := signingKey(t.Context(), accessKeyID, "20260102", region)
	if err != nil {
		t.Fatal(err)
	}
	v := verifier()
	v.config.SigningKey = cachedKey(key)
	good := signed(t)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 200 {
				if _, err := v.verify(good, []byte(body)); err != nil {
					t.Errorf("a good request: %v", err)
				}
				if _, err := v.verify(good, []byte(body+" ")); err == nil {
					t.Error("accepted another body")
				}
			}
		})
	}
	group.Wait()
}
