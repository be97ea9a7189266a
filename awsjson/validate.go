package awsjson

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// Validate checks in, the SDK's input struct of the named operation, against
// the constraints of the service model. All failures come together in one
// *ValidationError with AWS's texts. Any other error means that the operation
// does not exist or in is not its input: a mistake in the program.
//
// Lengths of strings count characters, of blobs decoded bytes, of lists items.
func Validate(operation string, in any) error {
	op, ok := Operation(operation)
	if !ok {
		return fmt.Errorf("validating: KMS has no operation %q", operation)
	}
	value, p, err := structOf(in)
	if err != nil {
		return fmt.Errorf("validating %s: %w", operation, err)
	}
	c, err := checkFor(op.input, p)
	if err != nil {
		return fmt.Errorf("validating %s: %w", operation, err)
	}
	var r report
	c.structure(&r, "", value)
	if len(r.failures) > 0 {
		return &ValidationError{Failures: r.failures}
	}
	return nil
}

// check is a shape's constraints bound to the Go type that holds it.
type check struct {
	plan      *plan
	shape     shapeModel
	pattern   func(string) bool // nil = none
	enumText  string            // "[A, B]"
	enum      map[string]bool
	members   []memberCheck
	element   *check // of a list
	key, item *check // of a map
	trivial   bool   // nothing below here can fail
}

type memberCheck struct {
	field    field
	required bool
	check    *check
}

type checkKey struct {
	shape string
	typ   reflect.Type
}

var checks sync.Map // checkKey → *check

func checkFor(shape string, p *plan) (*check, error) {
	key := checkKey{shape, p.typ}
	if c, ok := checks.Load(key); ok {
		return c.(*check), nil
	}
	c, err := newCheck(theModel(), shape, p)
	if err != nil {
		return nil, err
	}
	checks.Store(key, c)
	return c, nil
}

var wireKinds = map[string]kind{
	"string": kindString, "enum": kindEnum, "blob": kindBlob, "integer": kindInteger,
	"boolean": kindBool, "timestamp": kindTimestamp, "list": kindList, "map": kindMap,
	"structure": kindStructure,
}

func newCheck(m *model, name string, p *plan) (*check, error) {
	shape, ok := m.shapes[name]
	if !ok {
		return nil, fmt.Errorf("shape %s is not in the model", name)
	}
	if want, known := wireKinds[shape.Type]; !known || want != p.kind {
		return nil, fmt.Errorf("shape %s is a %s, which %v is not", name, shape.Type, p.typ)
	}
	c := &check{plan: p, shape: shape}
	c.trivial = shape.Min == nil && shape.Max == nil && shape.Pattern == "" && shape.Enum == nil
	var err error
	if c.pattern, err = compilePattern(shape.Pattern); err != nil {
		return nil, fmt.Errorf("shape %s: %w", name, err)
	}
	if len(shape.Enum) > 0 {
		c.enumText = "[" + strings.Join(shape.Enum, ", ") + "]"
		c.enum = make(map[string]bool, len(shape.Enum))
		for _, v := range shape.Enum {
			c.enum[v] = true
		}
	}
	return c, c.bind(m, name)
}

// bind adds the checks of what the shape contains.
func (c *check) bind(m *model, name string) (err error) {
	switch c.plan.kind {
	case kindList:
		c.element, err = newCheck(m, c.shape.Member, c.plan.element)
		c.trivial = c.trivial && err == nil && c.element.trivial
	case kindMap:
		text := &plan{kind: kindString, typ: reflect.TypeFor[string]()}
		if c.key, err = newCheck(m, c.shape.Key, text); err != nil {
			return err
		}
		c.item, err = newCheck(m, c.shape.Value, text)
		c.trivial = c.trivial && err == nil && c.key.trivial && c.item.trivial
	case kindStructure:
		for _, member := range slices.Sorted(maps.Keys(c.shape.Members)) {
			f, ok := c.plan.byName[member]
			if !ok {
				return fmt.Errorf("%v has no member %s of shape %s", c.plan.typ, member, name)
			}
			sub, err := newCheck(m, c.shape.Members[member], f.plan)
			if err != nil {
				return fmt.Errorf("member %s of shape %s: %w", member, name, err)
			}
			mc := memberCheck{f, slices.Contains(c.shape.Required, member), sub}
			if mc.required || !sub.trivial {
				c.members = append(c.members, mc)
			}
		}
		c.trivial = len(c.members) == 0
	}
	return err
}

// report collects failures.
type report struct{ failures []string }

// maxFailures bounds the answer to a request made of nothing but mistakes.
const maxFailures = 100

func (r *report) full() bool { return len(r.failures) >= maxFailures }

func (r *report) add(c *check, path, value, constraint string) {
	if r.full() {
		return
	}
	shown := "Value '" + printable(value) + "'"
	if c.shape.Sensitive {
		shown = "Value"
	}
	r.failures = append(r.failures, shown+" at '"+path+"' failed to satisfy constraint: "+constraint)
}

func (c *check) structure(r *report, prefix string, v reflect.Value) {
	for i := range c.members {
		m := &c.members[i]
		value, ok := present(m.field.plan, v.Field(m.field.index))
		switch {
		case ok && !m.check.trivial:
			m.check.value(r, prefix, m.field.lower, value)
		case !ok && m.required:
			r.failures = append(r.failures,
				"Value null at '"+prefix+m.field.lower+"' failed to satisfy constraint: Member must not be null")
		}
	}
}

func (c *check) value(r *report, prefix, name string, v reflect.Value) {
	switch c.plan.kind {
	case kindStructure:
		c.structure(r, prefix+name+".", v)
	case kindList:
		c.list(r, prefix, name, v)
	case kindMap:
		c.stringMap(r, prefix+name, v.Interface().(map[string]string))
	default:
		for _, constraint := range c.scalar(v) {
			r.add(c, prefix+name, c.show(v), constraint)
		}
	}
}

// scalar returns the constraints that a string, enum, blob or integer fails.
func (c *check) scalar(v reflect.Value) (failed []string) {
	switch c.plan.kind {
	case kindString, kindEnum:
		return c.text(v.String())
	case kindBlob:
		return c.bounds(v.Len(), "length")
	case kindInteger:
		return c.bounds(int(v.Int()), "value")
	}
	return nil // bools and times have no constraints
}

func (c *check) text(s string) (failed []string) {
	if c.enum != nil {
		if c.enum[s] {
			return nil
		}
		return []string{"Member must satisfy enum value set: " + c.enumText}
	}
	if c.shape.Min != nil || c.shape.Max != nil {
		failed = c.bounds(utf8.RuneCountInString(s), "length")
	}
	if c.pattern != nil && !c.pattern(s) {
		failed = append(failed, "Member must satisfy regular expression pattern: "+c.shape.Pattern)
	}
	return failed
}

func (c *check) bounds(n int, what string) []string {
	if c.shape.Max != nil && n > *c.shape.Max {
		return []string{fmt.Sprintf("Member must have %s less than or equal to %d", what, *c.shape.Max)}
	}
	if c.shape.Min != nil && n < *c.shape.Min {
		return []string{fmt.Sprintf("Member must have %s greater than or equal to %d", what, *c.shape.Min)}
	}
	return nil
}

// list names the structures in it by their 1-based place; for scalars AWS
// names the list and puts the element's constraints in brackets.
func (c *check) list(r *report, prefix, name string, v reflect.Value) {
	for _, constraint := range c.bounds(v.Len(), "length") {
		r.add(c, prefix+name, c.show(v), constraint)
	}
	if c.element.trivial {
		return
	}
	for i := 0; i < v.Len() && !r.full(); i++ {
		if c.element.plan.kind == kindStructure {
			c.element.structure(r, prefix+name+"."+strconv.Itoa(i+1)+".member.", v.Index(i))
		} else if len(c.element.scalar(v.Index(i))) > 0 {
			r.add(c.element, prefix+name, c.show(v), "Member must satisfy constraint: "+c.element.all())
			return
		}
	}
}

func (c *check) stringMap(r *report, path string, m map[string]string) {
	for key, value := range m {
		if len(c.key.text(key)) > 0 {
			r.add(c.key, path, key, "Map keys must satisfy constraint: "+c.key.all())
			return
		}
		if len(c.item.text(value)) > 0 {
			r.add(c.item, path, value, "Map value must satisfy constraint: "+c.item.all())
			return
		}
	}
}
