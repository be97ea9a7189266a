package softhsmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Two servers on one database and one token: what one has revoked, the other
// refuses at once, although its caches are warm.
func TestRevocationIsEverywhere(t *testing.T) {
	d := newDeployment(t, "")
	first, second := d.serve(t, "TRENT_HOST=host-a"), d.serve(t, "TRENT_HOST=host-b")
	r := &recorder{}
	a, b := newClient(first.url, d.admin, r), newClient(second.url, d.admin, r)
	ctx := context.Background()
	key := createKey(t, a)
	alias := "alias/fleet"
	if err := createAlias(b, alias, *key.KeyId); err != nil {
		t.Fatal(err)
	}
	blob := encrypt(t, b, alias, marker, nil)
	for range 10 {
		wantDecrypt(t, b, blob, marker, nil)
		must(a.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t)
		_, err := b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
		wantError[*types.DisabledException](t, err, "")
		_, err = b.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &alias, KeySpec: types.DataKeySpecAes256})
		wantError[*types.DisabledException](t, err, "")
		must(b.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))(t)
		wantDecrypt(t, a, blob, marker, nil)
	}
	other := createKey(t, b)
	encrypt(t, b, alias, marker, nil)
	must(a.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &alias, TargetKeyId: other.KeyId}))(t)
	out := must(b.Encrypt(ctx, &kms.EncryptInput{KeyId: &alias, Plaintext: []byte(marker)}))(t)
	if *out.KeyId != *other.Arn {
		t.Errorf("after UpdateAlias on one host the other encrypts under %s", *out.KeyId)
	}
	must(a.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &alias}))(t)
	_, err := b.Encrypt(ctx, &kms.EncryptInput{KeyId: &alias, Plaintext: []byte(marker)})
	wantError[*types.NotFoundException](t, err, "is not found.")
	must(a.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId}))(t)
	_, err = b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	wantError[*types.KMSInvalidStateException](t, err, "")
	d.checkRecords(t, r.all(), true)
	d.wantChains(t)
}

// While a key is disabled and enabled again and again, no answer may come
// from a call that began after the disabling was answered.
func TestNoAnswerAfterDisable(t *testing.T) {
	d := newDeployment(t, "")
	first, second := d.serve(t, "TRENT_HOST=host-a"), d.serve(t, "TRENT_HOST=host-b")
	a, b := newClient(first.url, d.admin, http.DefaultTransport), newClient(second.url, d.admin, http.DefaultTransport)
	ctx := context.Background()
	key := createKey(t, a)
	blob := encrypt(t, a, *key.KeyId, marker, nil)
	var disabledNow atomic.Bool
	var epoch atomic.Int64
	stop := make(chan struct{})
	var users sync.WaitGroup
	for range 6 {
		users.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				at := epoch.Load() // first, or what was may be of the epoch before
				was := disabledNow.Load()
				_, err := b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
				if err == nil && was && epoch.Load() == at {
					t.Error("a disabled key decrypted")
				}
				if code := errorCode(err); err != nil && code != "DisabledException" {
					t.Errorf("Decrypt: %v", err)
				}
			}
		})
	}
	for range 25 {
		must(a.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t)
		disabledNow.Store(true)
		time.Sleep(20 * time.Millisecond)
		disabledNow.Store(false)
		epoch.Add(1)
		must(a.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))(t)
		time.Sleep(10 * time.Millisecond)
	}
	close(stop)
	users.Wait()
}

// Mixed calls from many goroutines: each answer is right, each call recorded.
func TestManyAtOnce(t *testing.T) {
	d := shared(t)
	r := &recorder{}
	c := newClient(d.url, d.admin, r)
	var keys []*types.KeyMetadata
	for range 4 {
		keys = append(keys, createKey(t, c))
	}
	var all sync.WaitGroup
	for worker := range 24 {
		all.Go(func() {
			for i := range 12 {
				if err := mixedCalls(c, keys[(worker+i)%len(keys)], fmt.Sprintf("%s %d/%d", marker, worker, i), worker%8 == 0); err != nil {
					t.Errorf("worker %d: %v", worker, err)
				}
			}
		})
	}
	all.Wait()
	d.checkRecords(t, r.all(), true)
	d.wantChains(t)
}

// mixedCalls does one round trip under key. Another worker may have disabled
// it meanwhile, which is the only error allowed.
func mixedCalls(c *kms.Client, key *types.KeyMetadata, text string, toggle bool) error {
	ctx := context.Background()
	// Contexts are logged in the clear: not the text itself.
	with := map[string]string{"digest": fmt.Sprintf("%x", sha256.Sum256([]byte(text)))}
	var off *types.DisabledException
	if toggle {
		if _, err := c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}); err != nil {
			return err
		}
		if _, err := c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}); err != nil {
			return err
		}
	}
	sealed, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte(text), EncryptionContext: with})
	if errors.As(err, &off) {
		return nil
	}
	if err != nil {
		return err
	}
	opened, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: with})
	if errors.As(err, &off) {
		return nil
	}
	if err != nil {
		return err
	}
	if !bytes.Equal(opened.Plaintext, []byte(text)) {
		return errors.New("another call's plaintext came back")
	}
	_, err = c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: key.KeyId})
	return err
}
