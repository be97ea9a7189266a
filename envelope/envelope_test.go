package envelope

import (
	"bytes"
	"encoding/hex"
	"errors"
	"maps"
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
	h := Header{KeyID: keyID, BackingKey: [16]byte{1, 2, 3}, IV: bytes.Repeat([]byte{7}, ivLength)}
	blob, err := AppendHeader(nil, h)
	if err != nil {
		t.Fatal(err)
	}
	return append(blob, make([]byte, 32+tagSize)...)
}

// The bytes are a promise to every ciphertext ever made.
func TestHeaderBytes(t *testing.T) {
	h := Header{KeyID: uuidKey, BackingKey: [16]byte([]byte("0123456789abcdef")), IV: []byte("twelve bytes")}
	got, err := AppendHeader([]byte{0xff}, h)
	if err != nil {
		t.Fatal(err)
	}
	want := "ff" + "01" + "00" + "1234abcd12ab34cd56ef1234567890ab" +
		"30313233343536373839616263646566" + "0c" + "7477656c7665206279746573"
	if hex.EncodeToString(got) != want {
		t.Errorf("header = %x, want %s", got, want)
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
		h.IV = rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "IV")
		header, err := AppendHeader(nil, h)
		if err != nil {
			t.Fatal(err)
		}
		sealed := rapid.SliceOfN(rapid.Byte(), tagSize+1, 200).Draw(t, "sealed")
		gotHeader, gotBytes, gotSealed, err := Parse(append(bytes.Clone(header), sealed...))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(h, gotHeader); diff != "" {
			t.Error(diff)
		}
		if !bytes.Equal(gotBytes, header) || !bytes.Equal(gotSealed, sealed) {
			t.Errorf("parts = %x %x, want %x %x", gotBytes, gotSealed, header, sealed)
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
		if _, _, _, err := Parse(blob); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: err = %v, want ErrInvalid", name, err)
		}
	}
	for n := range len(good) - 32 + 1 {
		if _, _, _, err := Parse(good[:n]); n < ivAt+12+tagSize && !errors.Is(err, ErrInvalid) {
			t.Errorf("first %d bytes: err = %v, want ErrInvalid", n, err)
		}
	}
}

func TestParseLargestPlaintext(t *testing.T) {
	blob, err := AppendHeader(nil, Header{KeyID: mrkKey, IV: make([]byte, 16)})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(blob) + 4096 + tagSize; n > MaxSize {
		t.Errorf("4096 bytes become a blob of %d bytes, more than %d", n, MaxSize)
	}
	blob = append(blob, make([]byte, MaxSize-len(blob))...)
	if _, _, _, err := Parse(blob); err != nil {
		t.Errorf("a blob of exactly %d bytes: %v", MaxSize, err)
	}
}

func TestAppendHeaderRefuses(t *testing.T) {
	iv := make([]byte, 12)
	for name, h := range map[string]Header{
		"no key id":        {IV: iv},
		"UUID undashed":    {KeyID: "1234abcd12ab34cd56ef1234567890ab", IV: iv},
		"UUID upper case":  {KeyID: "1234ABCD-12ab-34cd-56ef-1234567890ab", IV: iv},
		"UUID dash early":  {KeyID: "1234abc-d12ab-34cd-56ef-1234567890ab", IV: iv},
		"UUID with letter": {KeyID: "1234abcd-12ab-34cd-56ef-1234567890ag", IV: iv},
		"mrk short":        {KeyID: "mrk-1234abcd12ab34cd56ef1234567890a", IV: iv},
		"mrk dash inside":  {KeyID: "mrk-1234abcd-2ab34cd56ef1234567890ab", IV: iv},
		"alias":            {KeyID: "alias/x", IV: iv},
		"IV missing":       {KeyID: uuidKey},
		"IV of 13 bytes":   {KeyID: uuidKey, IV: make([]byte, 13)},
	} {
		if dst, err := AppendHeader([]byte{9}, h); !errors.Is(err, ErrInvalid) || len(dst) != 1 {
			t.Errorf("%s: %x, %v, want ErrInvalid and dst unchanged", name, dst, err)
		}
	}
}

func TestAADIsInjective(t *testing.T) {
	text := rapid.StringOfN(rapid.RuneFrom([]rune("ab\x00\x01")), 0, 4, -1)
	header := rapid.Custom(func(t *rapid.T) []byte {
		n := rapid.SampledFrom([]int{12, 16}).Draw(t, "IV length")
		h, err := AppendHeader(nil, Header{KeyID: uuidKey, IV: rapid.SliceOfN(rapid.ByteRange(0, 1), n, n).Draw(t, "IV")})
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
		h, header, sealed, err := Parse(blob)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("err = %v, want ErrInvalid", err)
			}
			return
		}
		// One blob, one parse: encoding the header again gives its bytes.
		again, err := AppendHeader(nil, h)
		if err != nil || !bytes.Equal(again, header) || !bytes.Equal(append(again, sealed...), blob) {
			t.Fatalf("%x parses to %+v, which encodes to %x, %v", blob, h, again, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	blob := sample(b, uuidKey, 12)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := Parse(blob); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAAD(b *testing.B) {
	header, context := sample(b, uuidKey, 12)[:ivAt+12], map[string]string{"tenant": "a", "purpose": "backup"}
	b.ReportAllocs()
	for b.Loop() {
		AAD(header, context)
	}
}
