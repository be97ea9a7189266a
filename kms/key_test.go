package kms

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/store"
)

func TestMergeTags(t *testing.T) {
	have := []store.Tag{{Key: "b", Value: "1"}, {Key: "d", Value: "2"}}
	tag := func(key, value string) types.Tag {
		return types.Tag{TagKey: aws.String(key), TagValue: aws.String(value)}
	}
	got, err := mergeTags(have, []types.Tag{tag("c", "3"), tag("b", "4"), tag("a", "")})
	want := []store.Tag{{Key: "a"}, {Key: "b", Value: "4"}, {Key: "c", Value: "3"}, {Key: "d", Value: "2"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("mergeTags = %v, %v; want %v", got, err, want)
	}
	if have[0].Value != "1" {
		t.Error("mergeTags wrote to the cached row's tags")
	}
	var many []types.Tag
	for i := range maxTags - 1 {
		many = append(many, tag(fmt.Sprint(i), ""))
	}
	for text, set := range map[string][]types.Tag{
		"Duplicate tag keys":                    {tag("x", "1"), tag("x", "2")},
		"Tags beginning with aws: are reserved": {tag("AwS:x", "")},
		"Too many tags":                         many, // 49 and the 2 there are
	} {
		if _, err := mergeTags(have, set); err == nil || !strings.HasSuffix(err.Error(), text) {
			t.Errorf("mergeTags = %v, want %s", err, text)
		}
	}
}

func TestPages(t *testing.T) {
	l := listOf(&Call{Operation: "ListThings", Region: "r"}, "a")
	items := strings.Split("a b c d e", " ")
	var seen []string
	var marker *string
	for pages := 0; ; pages++ {
		if pages > 3 {
			t.Fatal("the pages do not end")
		}
		after, err := l.after(marker)
		if err != nil {
			t.Fatal(err)
		}
		i, found := slices.BinarySearch(items, after)
		if found {
			i++
		}
		var shown []string
		shown, marker = page(l, items[i:], 2, func(s string) string { return s })
		seen = append(seen, shown...)
		if marker == nil {
			break
		}
	}
	if !slices.Equal(seen, items) {
		t.Errorf("pages show %v, want %v", seen, items)
	}
	of := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	for _, bad := range []string{"x", "!", of("1:a"), of("2:ListThings:r:b:a"), of("2:ListThings:q:a:a"), of("2:ListThings:r:a:"), of("2:ListThings:r:a:\x00"), of("2:ListThings:r:a:\xff")} {
		if _, err := l.after(&bad); err == nil {
			t.Errorf("marker %q was taken", bad)
		}
	}
}

// TestMaterialID pins the derivation: stored ids must stay comparable with
// those of a later import of the same material.
func TestMaterialID(t *testing.T) {
	a := materialID("1234abcd-12ab-34cd-56ef-1234567890ab", []byte{1, 2, 3})
	if a != materialID("1234abcd-12ab-34cd-56ef-1234567890ab", []byte{1, 2, 3}) {
		t.Error("the same material under the same key has two ids")
	}
	if a == materialID("1234abcd-12ab-34cd-56ef-1234567890ac", []byte{1, 2, 3}) || a == materialID("1234abcd-12ab-34cd-56ef-1234567890ab", []byte{1, 2, 4}) {
		t.Error("other material, or another key, has the same id")
	}
	if len(a) != 64 || strings.Trim(a, "0123456789abcdef") != "" {
		t.Errorf("id %q is not 64 lower-case hex digits", a)
	}
}
