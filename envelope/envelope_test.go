package envelope

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const (
	uuidKey = "1234abcd-12ab-34cd-56ef-1234567890ab"
	mrkKey  = "mrk-1234abcd12ab34cd56ef1234567890ab"
)

func sample(t testing.TB, keyID string, ivLength int) []byte {
	t.Helper()
	header, err := AppendHeader(nil, Header{KeyID: keyID, BackingKey: [16]byte{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	blob, err := Finish(header, bytes.Repeat([]byte{7}, ivLength), make([]byte, 32+tagSize))
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// The bytes are a promise to every ciphertext ever made.
func TestBlobBytes(t *testing.T) {
	h := Header{KeyID: uuidKey, BackingKey: [16]byte([]byte("0123456789abcdef"))}
	got, err := AppendHeader([]byte{0xff}, h)
	if err != nil {
		t.Fatal(err)
	}
	want := "ff" + "01" + "00" + "1234abcd12ab34cd56ef1234567890ab" +
		"30313233343536373839616263646566"
	if hex.EncodeToString(got) != want {
		t.Errorf("header = %x, want %s", got, want)
	}
	blob, err := Finish(got[1:], []byte("twelve bytes"), []byte("x and a tag of 16"))
	if err != nil {
		t.Fatal(err)
	}
	want = want[2:] + "0c" + "7477656c7665206279746573" + "7820616e64206120746167206f66203136"
	if hex.EncodeToString(blob) != want {
		t.Errorf("blob = %x, want %s", blob, want)
	}
	aad := AAD([]byte{1, 2}, map[string]string{"b": "", "a": "xy"})
	if want := "0102" + "00000002" + "0000000161" + "000000027879" + "0000000162" + "00000000"; hex.EncodeToString(aad) != want {
		t.Errorf("AAD = %x, want %s", aad, want)
	}
}

func TestParseRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Header{
			KeyID:      rapid.StringMatching(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32}`).Draw(t, "key id"),
			BackingKey: [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "backing key")),
		}
		n := rapid.SampledFrom([]int{12, 16}).Draw(t, "IV length")
		iv := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "IV")
		header, err := AppendHeader(nil, h)
		if err != nil {
			t.Fatal(err)
		}
		sealed := rapid.SliceOfN(rapid.Byte(), tagSize+1, 200).Draw(t, "sealed")
		blob, err := Finish(header, iv, sealed)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(blob)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Blob{h, header, iv, sealed}, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	good := sample(t, uuidKey, 12)
	change := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[at] = b
		return c
	}
	for name, blob := range map[string][]byte{
		"nothing":             nil,
		"version 0":           change(0, 0),
		"version 2":           change(0, 2),
		"kind 2":              change(1, 2),
		"IV of no bytes":      change(ivLengthAt, 0),
		"IV of 13 bytes":      change(ivLengthAt, 13),
		"IV beyond the end":   change(ivLengthAt, 255),
		"header only":         good[:ivAt+12],
		"tag only":            good[:ivAt+12+tagSize],
		"too long":            append(bytes.Clone(good), make([]byte, MaxSize)...),
		"one byte of version": {1},
	} {
		if _, err := Parse(blob); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: err = %v, want ErrInvalid", name, err)
		}
	}
	for n := range len(good) - 32 + 1 {
		if _, err := Parse(good[:n]); n < ivAt+12+tagSize && !errors.Is(err, ErrInvalid) {
			t.Errorf("first %d bytes: err = %v, want ErrInvalid", n, err)
		}
	}
}

func TestParseLargestPlaintext(t *testing.T) {
	header, err := AppendHeader(nil, Header{KeyID: mrkKey})
	if err != nil {
		t.Fatal(err)
	}
	iv := make([]byte, 16)
	if _, err := Finish(header, iv, make([]byte, 4096+tagSize)); err != nil {
		t.Errorf("4096 bytes become no blob: %v", err)
	}
	most := MaxSize - len(header) - 1 - len(iv)
	blob, err := Finish(header, iv, make([]byte, most))
	if err != nil || len(blob) != MaxSize {
		t.Fatalf("%d sealed bytes: a blob of %d, %v", most, len(blob), err)
	}
	if _, err := Parse(blob); err != nil {
		t.Errorf("a blob of exactly %d bytes: %v", MaxSize, err)
	}
	if _, err := Finish(header, iv, make([]byte, most+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a blob of more than %d bytes: %v", MaxSize, err)
	}
}

func TestAppendHeaderRefuses(t *testing.T) {
	for name, h := range map[string]Header{
		"no key id":        {},
		"UUID undashed":    {KeyID: "1234abcd12ab34cd56ef1234567890ab"},
		"UUID upper case":  {KeyID: "1234ABCD-12ab-34cd-56ef-1234567890ab"},
		"UUID dash early":  {KeyID: "1234abc-d12ab-34cd-56ef-1234567890ab"},
		"UUID with letter": {KeyID: "1234abcd-12ab-34cd-56ef-1234567890ag"},
		"mrk short":        {KeyID: "mrk-1234abcd12ab34cd56ef1234567890a"},
		"mrk dash inside":  {KeyID: "mrk-1234abcd-2ab34cd56ef1234567890ab"},
		"alias":            {KeyID: "alias/x"},
	} {
		if dst, err := AppendHeader([]byte{9}, h); !errors.Is(err, ErrInvalid) || len(dst) != 1 {
			t.Errorf("%s: %x, %v, want ErrInvalid and dst unchanged", name, dst, err)
		}
	}
}

func TestFinishRefuses(t *testing.T) {
	header := sample(t, uuidKey, 12)[:ivLengthAt]
	for _, n := range []int{0, 11, 13, 15, 17} {
		if blob, err := Finish(header, make([]byte, n), make([]byte, 32)); !errors.Is(err, ErrInvalid) || blob != nil {
			t.Errorf("an IV of %d bytes: %x, %v, want ErrInvalid", n, blob, err)
		}
	}
	if blob, err := Finish(header, make([]byte, 12), make([]byte, tagSize)); !errors.Is(err, ErrInvalid) || blob != nil {
		t.Errorf("a tag and nothing else: %x, %v, want ErrInvalid", blob, err)
	}
}

// TestEveryByteIsAuthenticated: no byte of a blob can be changed, taken away
// or put in, the IV's and its length's included, although they are not in the
// AAD.
func TestEveryByteIsAuthenticated(t *testing.T) {
	block, err := aes.NewCipher(bytes.Repeat([]byte{5}, 32))
	if err != nil {
		t.Fatal(err)
	}
	context := map[string]string{"tenant": "a"}
	open := func(blob []byte) bool {
		b, err := Parse(blob)
		if err != nil {
			return false
		}
		gcm, err := cipher.NewGCMWithNonceSize(block, len(b.IV))
		if err != nil {
			t.Fatal(err)
		}
		_, err = gcm.Open(nil, b.IV, b.Sealed, AAD(b.Encoded, context))
		return err == nil
	}
	for _, ivLength := range []int{12, 16} {
		header, err := AppendHeader(nil, Header{KeyID: uuidKey, BackingKey: [16]byte{1}})
		if err != nil {
			t.Fatal(err)
		}
		gcm, err := cipher.NewGCMWithNonceSize(block, ivLength)
		if err != nil {
			t.Fatal(err)
		}
		iv := bytes.Repeat([]byte{7}, ivLength)
		blob, err := Finish(header, iv, gcm.Seal(nil, iv, []byte("forty bytes of plaintext, more or less."), AAD(header, context)))
		if err != nil || !open(blob) {
			t.Fatalf("the blob does not open (%v)", err)
		}
		for at := range blob {
			for change := 1; change < 256; change++ {
				altered := bytes.Clone(blob)
				altered[at] ^= byte(change)
				if open(altered) {
					t.Errorf("IV of %d bytes: byte %d changed by %02x, and it opens", ivLength, at, change)
				}
			}
			if open(slices.Delete(bytes.Clone(blob), at, at+1)) || open(slices.Insert(bytes.Clone(blob), at, 0)) {
				t.Errorf("IV of %d bytes: a byte more or less at %d, and it opens", ivLength, at)
			}
		}
	}
}

func TestAADIsInjective(t *testing.T) {
	text := rapid.StringOfN(rapid.RuneFrom([]rune("ab\x00\x01")), 0, 4, -1)
	header := rapid.Custom(func(t *rapid.T) []byte {
		backing := rapid.SliceOfN(rapid.ByteRange(0, 1), 16, 16).Draw(t, "backing key")
		h, err := AppendHeader(nil, Header{KeyID: rapid.SampledFrom([]string{uuidKey, mrkKey}).Draw(t, "key id"), BackingKey: [16]byte(backing)})
		if err != nil {
			t.Fatal(err)
		}
		return h
	})
	rapid.Check(t, func(t *rapid.T) {
		h1, h2 := header.Draw(t, "h1"), header.Draw(t, "h2")
		if rapid.Bool().Draw(t, "same header") {
			h2 = h1
		}
		c1 := rapid.MapOfN(text, text, 0, 3).Draw(t, "c1")
		c2 := rapid.MapOfN(text, text, 0, 3).Draw(t, "c2")
		same := bytes.Equal(h1, h2) && maps.Equal(c1, c2)
		if got := bytes.Equal(AAD(h1, c1), AAD(h2, c2)); got != same {
			t.Errorf("AADs equal = %v, want %v", got, same)
		}
	})
}

func TestAADOfNilAndEmpty(t *testing.T) {
	if !bytes.Equal(AAD([]byte{1}, nil), AAD([]byte{1}, map[string]string{})) {
		t.Error("nil and empty contexts differ")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample(f, uuidKey, 12))
	f.Add(sample(f, mrkKey, 16))
	f.Add([]byte{})
	f.Add([]byte{1, 0})
	f.Fuzz(func(t *testing.T, blob []byte) {
		b, err := Parse(blob)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("err = %v, want ErrInvalid", err)
			}
			return
		}
		// One blob, one parse: encoding the header again gives its bytes.
		header, err := AppendHeader(nil, b.Header)
		if err != nil || !bytes.Equal(header, b.Encoded) {
			t.Fatalf("%x parses to %+v, whose header encodes to %x, %v", blob, b, header, err)
		}
		again, err := Finish(header, b.IV, b.Sealed)
		if err != nil || !bytes.Equal(again, blob) {
			t.Fatalf("%x parses to %+v, which encodes to %x, %v", blob, b, again, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	blob := sample(b, uuidKey, 12)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(blob); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAAD(b *testing.B) {
	header, context := sample(b, uuidKey, 12)[:ivLengthAt], map[string]string{"tenant": "a", "purpose": "backup"}
	b.ReportAllocs()
	for b.Loop() {
		AAD(header, context)
	}
}

func TestValidKeyID(t *testing.T) {
	for _, id := range []string{uuidKey, mrkKey} {
		if !ValidKeyID(id) {
			t.Errorf("%q is refused", id)
		}
		for i := range len(id) {
			for _, c := range []string{"g", "F", "-", ":", "\x00", "é", ""} {
				if other := id[:i] + c + id[i+1:]; other != id && ValidKeyID(other) {
					t.Errorf("%q is accepted", other)
				}
			}
		}
		if ValidKeyID(id+"0") || ValidKeyID(id+"\n") || ValidKeyID(strings.ToUpper(id)) {
			t.Errorf("%q is accepted with more behind it, or in upper case", id)
		}
	}
}
