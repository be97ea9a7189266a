package awsjson

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Decode parses the body of a request into the SDK's input struct that in
// points to. Unknown members are ignored, null is absent, an empty body is {}.
// Blobs and lists that are present but empty become non-nil. Duplicate member
// names, invalid UTF-8, nulls inside lists and maps, base64 that is not strict,
// and anything of the wrong JSON type are a *SerializationError; in is then
// partly filled and must not be used. Decode keeps no reference to body.
func Decode(body []byte, in any) error {
	value, p, err := structOf(in)
	if err != nil {
		return fmt.Errorf("decoding a request: %w", err)
	}
	if len(body) == 0 {
		return nil
	}
	d := decoders.Get().(*decoder)
	d.read(body)
	err = d.document(p, value)
	// The body holds plaintext: the pool must not keep it alive.
	d.read(nil)
	clear(d.scratch[:cap(d.scratch)])
	if cap(d.scratch) > maxScratch {
		d.scratch = nil
	}
	decoders.Put(d)
	return err
}

// maxScratch bounds in bytes what one large request leaves in the pool.
const maxScratch = 4096

type decoder struct {
	json    *jsontext.Decoder
	source  bytes.Buffer // what json reads, in place
	scratch []byte       // unquoted text of the string at hand
}

var decoders = sync.Pool{New: func() any {
	d := &decoder{scratch: make([]byte, 0, 256)}
	d.json = jsontext.NewDecoder(&d.source)
	return d
}}

func (d *decoder) read(body []byte) {
	d.source = *bytes.NewBuffer(body)
	d.json.Reset(&d.source)
}

func (d *decoder) document(p *plan, v reflect.Value) error {
	if k := d.json.PeekKind(); k != jsontext.KindBeginObject {
		if k == jsontext.KindInvalid {
			return d.malformed()
		}
		return mismatch(k, "a Structure")
	}
	if err := d.structure(p, v); err != nil {
		return err
	}
	if _, err := d.json.ReadToken(); !errors.Is(err, io.EOF) {
		return d.malformed()
	}
	return nil
}

// malformed describes a syntax error by its place only.
func (d *decoder) malformed() error {
	return &SerializationError{fmt.Sprintf("The request body is not well-formed JSON near byte %d.", d.json.InputOffset())}
}

// mismatch uses the words seen from the live service where there are any.
func mismatch(got jsontext.Kind, want string) error {
	names := map[jsontext.Kind]string{
		jsontext.KindString: "STRING_VALUE", jsontext.KindNumber: "NUMBER_VALUE",
		jsontext.KindTrue: "TRUE_VALUE", jsontext.KindFalse: "FALSE_VALUE", jsontext.KindNull: "NULL_VALUE",
	}
	switch got {
	case jsontext.KindBeginObject:
		return &SerializationError{"Start of structure or map found where not expected."}
	case jsontext.KindBeginArray:
		return &SerializationError{"Start of list found where not expected."}
	}
	return &SerializationError{names[got] + " can not be converted to " + want}
}

// expect demands that the next value begins with want.
func (d *decoder) expect(want jsontext.Kind, name string) error {
	switch k := d.json.PeekKind(); k {
	case want:
		return nil
	case jsontext.KindInvalid:
		return d.malformed()
	default:
		return mismatch(k, name)
	}
}

func (d *decoder) structure(p *plan, v reflect.Value) error {
	if err := d.expect(jsontext.KindBeginObject, "a Structure"); err != nil {
		return err
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.malformed()
	}
	for {
		name, end, err := d.memberName()
		if err != nil || end {
			return err
		}
		f, known := p.byName[string(name)]
		if !known || d.json.PeekKind() == jsontext.KindNull {
			if err := d.json.SkipValue(); err != nil {
				return d.malformed()
			}
			continue
		}
		target := v.Field(f.index)
		if f.plan.pointer {
			target.Set(reflect.New(f.plan.typ.Elem()))
			target = target.Elem()
		}
		if err := d.value(f.plan, target); err != nil {
			return err
		}
	}
}

// memberName reads the next name of the object at hand, valid until the next
// read, or its closing brace.
func (d *decoder) memberName() (name []byte, end bool, err error) {
	if d.json.PeekKind() == jsontext.KindEndObject {
		_, err := d.json.ReadToken()
		return nil, true, err
	}
	name, err = d.text("a String")
	return name, false, err
}

// text reads a JSON string. The result is valid until the next call.
func (d *decoder) text(want string) ([]byte, error) {
	if err := d.expect(jsontext.KindString, want); err != nil {
		return nil, err
	}
	raw, err := d.json.ReadValue()
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return nil, &SerializationError{fmt.Sprintf("The request body has a member twice near byte %d.", d.json.InputOffset())}
	}
	if err != nil {
		return nil, d.malformed()
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], nil
	}
	d.scratch, err = jsontext.AppendUnquote(d.scratch[:0], raw)
	if err != nil {
		return nil, d.malformed()
	}
	return d.scratch, nil
}

func (d *decoder) value(p *plan, v reflect.Value) error {
	switch p.kind {
	case kindString, kindEnum:
		text, err := d.text("a String")
		if err != nil {
			return err
		}
		if p.kind == kindEnum && len(text) == 0 {
			text = []byte(explicitEmpty)
		}
		v.SetString(string(text))
		return nil
	case kindBool:
		return d.boolean(v)
	case kindInteger:
		return d.integer(v)
	case kindBlob:
		return d.blob(v)
	case kindTimestamp:
		return d.timestamp(v)
	case kindStructure:
		return d.structure(p, v)
	case kindList:
		return d.list(p, v)
	case kindMap:
		return d.stringMap(v)
	}
	return fmt.Errorf("decoding %v: no wire form", p.typ)
}

func (d *decoder) boolean(v reflect.Value) error {
	switch k := d.json.PeekKind(); k {
	case jsontext.KindTrue, jsontext.KindFalse:
		v.SetBool(k == jsontext.KindTrue)
	default:
		return d.expect(jsontext.KindTrue, "a Boolean")
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.malformed()
	}
	return nil
}

func (d *decoder) number(want string) ([]byte, error) {
	if err := d.expect(jsontext.KindNumber, want); err != nil {
		return nil, err
	}
	raw, err := d.json.ReadValue()
	if err != nil {
		return nil, d.malformed()
	}
	return raw, nil
}

func (d *decoder) integer(v reflect.Value) error {
	raw, err := d.number("an Integer")
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(string(raw), 10, 32)
	if err != nil {
		return &SerializationError{"NUMBER_VALUE can not be converted to an Integer"}
	}
	v.SetInt(n)
	return nil
}

// maxTimestamp is the end of the year 9999 in epoch seconds, beyond which a
// date has no agreed text form.
const maxTimestamp = 253402300799

func (d *decoder) timestamp(v reflect.Value) error {
	raw, err := d.number("a Timestamp")
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || math.Abs(seconds) > maxTimestamp {
		return &SerializationError{"NUMBER_VALUE can not be converted to a Timestamp"}
	}
	// AWS keeps milliseconds; a float64 has no more to give reliably.
	v.Set(reflect.ValueOf(time.UnixMilli(int64(math.Round(seconds * 1000))).UTC()))
	return nil
}

func (d *decoder) blob(v reflect.Value) error {
	text, err := d.text("a ByteBuffer")
	if err != nil {
		return err
	}
	blob := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(blob, text)
	// The standard decoder skips line breaks, which are no base64 here.
	if err != nil || bytes.ContainsAny(text, "\r\n") {
		clear(blob)
		return &SerializationError{"A blob is not valid base64."}
	}
	v.SetBytes(blob[:n])
	return nil
}

func (d *decoder) list(p *plan, v reflect.Value) error {
	if err := d.expect(jsontext.KindBeginArray, "a List"); err != nil {
		return err
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.malformed()
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, 4))
	for n := 0; d.json.PeekKind() != jsontext.KindEndArray; n++ {
		v.Grow(1)
		v.SetLen(n + 1)
		v.Index(n).SetZero()
		if err := d.value(p.element, v.Index(n)); err != nil {
			return err
		}
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.malformed()
	}
	return nil
}

func (d *decoder) stringMap(v reflect.Value) error {
	if err := d.expect(jsontext.KindBeginObject, "a Map"); err != nil {
		return err
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.malformed()
	}
	m := map[string]string{}
	for {
		name, end, err := d.memberName()
		if err != nil {
			return err
		}
		if end {
			v.Set(reflect.ValueOf(m))
			return nil
		}
		key := string(name)
		value, err := d.text("a String")
		if err != nil {
			return err
		}
		m[key] = string(value)
	}
}
