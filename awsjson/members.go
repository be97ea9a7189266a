package awsjson

import (
	"reflect"
	"slices"
	"strconv"
	"time"
)

// AppendMembers appends a JSON object of those of the named members (wire
// names, e.g. "KeyId") that the SDK struct in has, in the form CloudTrail
// gives to requestParameters and responseElements: names begin in lower case,
// dates are text. A plain bool is present only when true. Blobs, and members
// that the model marks as sensitive, are left out even when named.
func AppendMembers(dst []byte, in any, members []string) []byte {
	value, p, err := structOf(in)
	if err != nil {
		return append(dst, "{}"...)
	}
	return appendMembers(dst, p, value, func(name string) bool { return slices.Contains(members, name) })
}

func appendMembers(dst []byte, p *plan, v reflect.Value, wanted func(name string) bool) []byte {
	dst = append(dst, '{')
	start := len(dst)
	for i := range p.fields {
		f := &p.fields[i]
		if !wanted(f.name) || f.unrecorded {
			continue
		}
		member, ok := present(f.plan, v.Field(f.index))
		if !ok || (f.plan.kind == kindBool && !f.plan.pointer && !member.Bool()) {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, f.lower...)
		dst = append(dst, '"', ':')
		dst = appendMember(dst, f.plan, member)
	}
	return append(dst, '}')
}

func appendMember(dst []byte, p *plan, v reflect.Value) []byte {
	switch p.kind {
	case kindStructure:
		return appendMembers(dst, p, v, func(string) bool { return true })
	case kindTimestamp:
		t := v.Interface().(time.Time).UTC()
		return strconv.AppendQuote(dst, t.Format("Jan 2, 2006, 3:04:05 PM"))
	case kindList:
		dst = append(dst, '[')
		for i := range v.Len() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendMember(dst, p.element, v.Index(i))
		}
		return append(dst, ']')
	}
	start := len(dst)
	dst, err := appendValue(dst, p, v)
	if err != nil {
		// Only strings that are no UTF-8 get here, and Decode lets none in.
		// A record must be written all the same.
		return append(dst[:start], `"[not UTF-8]"`...)
	}
	return dst
}
