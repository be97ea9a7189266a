package kms

import (
	"encoding/base64"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// A list is what a marker is good for: an operation in a Region and the key or
// principal whose things it lists. A marker is this and the last item shown, in
// URL-safe base64.
type list string

// listOf is the list that call asks for; whose is "" if it is the account's.
func listOf(call *Call, whose string) list {
	return list("2:" + call.Operation + ":" + call.Region + ":" + whose + ":")
}

// after returns the item behind which the page of marker begins.
func (l list) after(marker *string) (string, error) {
	if marker == nil {
		return "", nil
	}
	text, err := base64.RawURLEncoding.DecodeString(*marker)
	after, found := strings.CutPrefix(string(text), string(l))
	if err != nil || !found || after == "" || !utf8.ValidString(after) || strings.ContainsRune(after, 0) {
		return "", invalidMarker()
	}
	return after, nil
}

// marker is that of the page behind an item.
func (l list) marker(item string) *string {
	return aws.String(base64.RawURLEncoding.EncodeToString([]byte(string(l) + item)))
}

func invalidMarker() error {
	return &types.InvalidMarkerException{Message: aws.String("The marker is not one that an earlier page returned.")}
}

// pageSize is the Limit of a list operation. The service model's bound is the
// same for all; most takes less.
func pageSize(limit *int32, byDefault, most int) (int, error) {
	switch {
	case limit == nil:
		return byDefault, nil
	case int(*limit) > most:
		return 0, validation("1 validation error detected: Value '%d' at 'limit' failed to satisfy constraint: Member must have value less than or equal to %d", *limit, most)
	}
	return int(*limit), nil
}

// page cuts one item more than limit off and makes the marker of the next
// page, nil on the last one.
func page[T any](l list, items []T, limit int, name func(T) string) ([]T, *string) {
	if len(items) <= limit {
		return items, nil
	}
	items = slices.Clip(items[:limit])
	return items, l.marker(name(items[limit-1]))
}
