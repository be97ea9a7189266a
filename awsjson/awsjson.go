// Package awsjson is the codec between AWS JSON 1.1 and the Go structs of the
// AWS SDK, and the constraint checker that AWS runs in front of each operation.
// The SDK has serializers for requests and deserializers for answers only, and
// its structs carry no JSON tags: member names are field names. Constraints are
// data (model.json), not code.
package awsjson

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/aws/smithy-go"
)

// SerializationError is AWS's SerializationException: the body is no JSON
// object, or a member has the wrong JSON type. The message never quotes the
// body, which may hold plaintext.
type SerializationError struct{ Message string }

func (e *SerializationError) Error() string                 { return "SerializationException: " + e.Message }
func (e *SerializationError) ErrorCode() string             { return "SerializationException" }
func (e *SerializationError) ErrorMessage() string          { return e.Message }
func (e *SerializationError) ErrorFault() smithy.ErrorFault { return smithy.FaultClient }

// ValidationError is AWS's ValidationException for failed constraints.
type ValidationError struct {
	// Failures holds one item per failed constraint, in AWS's words.
	Failures []string
}

func (e *ValidationError) Error() string                 { return "ValidationException: " + e.ErrorMessage() }
func (e *ValidationError) ErrorCode() string             { return "ValidationException" }
func (e *ValidationError) ErrorFault() smithy.ErrorFault { return smithy.FaultClient }

// ErrorMessage joins the failures the way AWS does.
func (e *ValidationError) ErrorMessage() string {
	noun := "errors"
	if len(e.Failures) == 1 {
		noun = "error"
	}
	return fmt.Sprintf("%d validation %s detected: %s", len(e.Failures), noun, strings.Join(e.Failures, "; "))
}

var (
	_ smithy.APIError = (*SerializationError)(nil)
	_ smithy.APIError = (*ValidationError)(nil)
)

// explicitEmpty stands in an enum field for an empty string that the caller
// wrote: the SDK's enums are plain strings, where "" means absent. No enum has
// this value, so Validate refuses it and no operation ever sees it.
const explicitEmpty = "\x00"

func enumText(s string) string {
	if s == explicitEmpty {
		return ""
	}
	return s
}

// kind is what the wire says about a Go type of the SDK.
type kind uint8

const (
	kindString kind = iota
	kindEnum        // named string type; "" = absent
	kindBool
	kindInteger
	kindBlob
	kindTimestamp
	kindStructure
	kindList
	kindMap // string to string, the only map in KMS
)

// plan is the reflection on one Go type, done once.
type plan struct {
	kind    kind
	pointer bool // the Go type is a pointer to what kind says
	typ     reflect.Type
	fields  []field          // of a structure, in declaration order
	byName  map[string]field // the same
	element *plan            // of a list
}

type field struct {
	name  string // wire name = Go name
	quote string // `"Name":`
	lower string // name with its first letter in lower case
	index int
	plan  *plan

	// unrecorded is true of what no audit record may show.
	unrecorded bool
}

var (
	timeType = reflect.TypeFor[time.Time]()
	plans    sync.Map // reflect.Type → *plan
)

// planFor returns the plan of a struct type. Recursive types do not occur in
// KMS.
func planFor(t reflect.Type) (*plan, error) {
	if p, ok := plans.Load(t); ok {
		return p.(*plan), nil
	}
	p, err := newPlan(t)
	if err != nil {
		return nil, fmt.Errorf("examining %v: %w", t, err)
	}
	plans.Store(t, p)
	return p, nil
}

func newPlan(t reflect.Type) (*plan, error) {
	p := &plan{typ: t}
	if t.Kind() == reflect.Pointer {
		p.pointer = true
		t = t.Elem()
	}
	switch {
	case t == timeType:
		p.kind = kindTimestamp
	case t.Kind() == reflect.Struct:
		p.kind = kindStructure
		return p, p.addFields(t)
	case t.Kind() == reflect.String && t != reflect.TypeFor[string]():
		p.kind = kindEnum
	case t.Kind() == reflect.String:
		p.kind = kindString
	case t.Kind() == reflect.Bool:
		p.kind = kindBool
	case t.Kind() == reflect.Int32:
		p.kind = kindInteger
	case t == reflect.TypeFor[[]byte]():
		p.kind = kindBlob
	case t.Kind() == reflect.Slice:
		p.kind = kindList
		element, err := newPlan(t.Elem())
		p.element = element
		return p, err
	case t == reflect.TypeFor[map[string]string]():
		p.kind = kindMap
	default:
		return nil, fmt.Errorf("no wire form for %v", t)
	}
	return p, nil
}

func (p *plan) addFields(t reflect.Type) error {
	p.byName = make(map[string]field, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		// ResultMetadata belongs to the SDK's client, not to the wire.
		if !f.IsExported() || f.Name == "ResultMetadata" {
			continue
		}
		member, err := newPlan(f.Type)
		if err != nil {
			return fmt.Errorf("member %s: %w", f.Name, err)
		}
		wire := field{
			name: f.Name, quote: `"` + f.Name + `":`, lower: lowerFirst(f.Name), index: i, plan: member,
			unrecorded: member.kind == kindBlob || theModel().sensitive[f.Name],
		}
		p.fields = append(p.fields, wire)
		p.byName[f.Name] = wire
	}
	return nil
}

func lowerFirst(name string) string { return strings.ToLower(name[:1]) + name[1:] }

var errNotStruct = errors.New("not a non-nil pointer to a struct")

// structOf returns the struct that v points to, and its plan.
func structOf(v any) (reflect.Value, *plan, error) {
	value := reflect.ValueOf(v)
	if value.Kind() != reflect.Pointer || value.IsNil() || value.Elem().Kind() != reflect.Struct {
		return reflect.Value{}, nil, fmt.Errorf("%T: %w", v, errNotStruct)
	}
	value = value.Elem()
	p, err := planFor(value.Type())
	return value, p, err
}
