package awsjson

import (
	"encoding/base64"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Encode writes an SDK struct as AWS JSON 1.1. Plain bools are always written,
// nil members and empty enums never; empty lists, maps and blobs are kept. The
// result holds whatever plaintext out holds: the caller wipes it.
func Encode(out any) ([]byte, error) {
	value, p, err := structOf(out)
	if err != nil {
		return nil, fmt.Errorf("encoding an answer: %w", err)
	}
	body, err := appendStructure(make([]byte, 0, size(p, value)), p, value)
	if err != nil {
		clear(body)
		return nil, fmt.Errorf("encoding %T: %w", out, err)
	}
	return body, nil
}

func appendStructure(dst []byte, p *plan, v reflect.Value) ([]byte, error) {
	dst = append(dst, '{')
	first := true
	for i := range p.fields {
		f := &p.fields[i]
		member, ok := present(f.plan, v.Field(f.index))
		if !ok {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, f.quote...)
		var err error
		if dst, err = appendValue(dst, f.plan, member); err != nil {
			return dst, fmt.Errorf("member %s: %w", f.name, err)
		}
	}
	return append(dst, '}'), nil
}

// present follows a pointer and says whether the member is there at all.
func present(p *plan, v reflect.Value) (reflect.Value, bool) {
	switch {
	case p.pointer:
		return v.Elem(), !v.IsNil()
	case p.kind == kindEnum:
		return v, v.Len() > 0
	case p.kind == kindBlob, p.kind == kindList, p.kind == kindMap:
		return v, !v.IsNil()
	}
	return v, true
}

func appendValue(dst []byte, p *plan, v reflect.Value) ([]byte, error) {
	switch p.kind {
	case kindEnum:
		return appendString(dst, enumText(v.String()))
	case kindString:
		return appendString(dst, v.String())
	case kindBool:
		return strconv.AppendBool(dst, v.Bool()), nil
	case kindInteger:
		return strconv.AppendInt(dst, v.Int(), 10), nil
	case kindBlob:
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, v.Bytes())
		return append(dst, '"'), nil
	case kindTimestamp:
		return appendTimestamp(dst, v.Interface().(time.Time))
	case kindStructure:
		return appendStructure(dst, p, v)
	case kindList:
		return appendList(dst, p, v)
	case kindMap:
		return appendMap(dst, v.Interface().(map[string]string))
	}
	return dst, fmt.Errorf("%v has no wire form", p.typ)
}

// appendString takes the short way for the printable ASCII that nearly all
// strings in KMS are.
func appendString(dst []byte, s string) ([]byte, error) {
	if !plain(s) {
		return jsontext.AppendQuote(dst, s)
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"'), nil
}

// plain reports whether JSON has s as it is.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// appendTimestamp writes epoch seconds with a fraction, in milliseconds.
func appendTimestamp(dst []byte, t time.Time) ([]byte, error) {
	if s := t.Unix(); s > maxTimestamp || s < -maxTimestamp {
		return dst, fmt.Errorf("time %v lies outside of what clients read", t)
	}
	ms := t.UnixMilli()
	if ms%1000 == 0 {
		dst = strconv.AppendInt(dst, ms/1000, 10)
		return append(dst, '.', '0'), nil
	}
	return strconv.AppendFloat(dst, math.Round(float64(ms))/1000, 'f', -1, 64), nil
}

func appendList(dst []byte, p *plan, v reflect.Value) ([]byte, error) {
	dst = append(dst, '[')
	for i := range v.Len() {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = appendValue(dst, p.element, v.Index(i)); err != nil {
			return dst, fmt.Errorf("element %d: %w", i+1, err)
		}
	}
	return append(dst, ']'), nil
}

// appendMap sorts by key: equal answers and audit records have equal bytes.
func appendMap(dst []byte, m map[string]string) ([]byte, error) {
	dst = append(dst, '{')
	for i, key := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = appendString(dst, key); err != nil {
			return dst, err
		}
		dst = append(dst, ':')
		if dst, err = appendString(dst, m[key]); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// size estimates the length of a structure's encoding, generously for what is
// common: growing would leave plaintext behind in an abandoned buffer.
func size(p *plan, v reflect.Value) int {
	n := 2
	for i := range p.fields {
		f := &p.fields[i]
		if member, ok := present(f.plan, v.Field(f.index)); ok {
			n += len(f.quote) + 1 + valueSize(f.plan, member)
		}
	}
	return n
}

func valueSize(p *plan, v reflect.Value) int {
	switch p.kind {
	case kindString, kindEnum:
		if plain(v.String()) {
			return 2 + v.Len()
		}
		return 2 + 6*v.Len() // every byte might become \u00XX
	case kindBlob:
		return 2 + base64.StdEncoding.EncodedLen(v.Len())
	case kindStructure:
		return size(p, v)
	case kindList:
		n := 2
		for i := range v.Len() {
			n += 1 + valueSize(p.element, v.Index(i))
		}
		return n
	case kindMap:
		n := 2
		for key, value := range v.Interface().(map[string]string) {
			n += 6*(len(key)+len(value)) + 6
		}
		return n
	}
	return 24 // numbers, bools, times
}
