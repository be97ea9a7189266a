package softhsmtest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// A badRequest breaks one constraint of the service model and nothing else.
type badRequest struct {
	operation string
	what      string // "tags.1.member.tagKey: too long"
	body      []byte
	code      string
	path      string // of the member at fault, in AWS's form
	text      string // that the answer's text has
	hidden    bool   // the member is sensitive: its value may not be shown
}

// A generator makes bad requests of one operation out of the model.
type generator struct {
	model     serviceModel
	operation string
	keyID     string // of a key that exists, so that nothing else is wrong
	patterns  map[string]*regexp.Regexp
	out       []badRequest
}

func newGenerator(t testing.TB, operation, keyID string) *generator {
	t.Helper()
	return &generator{model: modelOf(t), operation: operation, keyID: keyID, patterns: map[string]*regexp.Regexp{}}
}

// A place is where in a request a value stands.
type place struct {
	path string              // "tags.1.member.tagKey"
	put  func(any) any       // the whole body, with a value at this place
	of   func(string) string // how AWS words a constraint of a value here
}

func member(text string) string { return "failed to satisfy constraint: Member must " + text }

// inBrackets words the constraint of what is inside a list or map.
func inBrackets(what string) func(string) string {
	return func(text string) string {
		return "failed to satisfy constraint: " + what + " must satisfy constraint: [" // then all of them
	}
}

func (g *generator) generate(t testing.TB) []badRequest {
	t.Helper()
	input := g.model.Operations[g.operation].Input
	g.structure(t, input, place{"", func(v any) any { return v }, member})
	g.malformed(t, g.base(t, input))
	return g.out
}

// add makes one bad request.
func (g *generator) add(at place, what string, value any, code, text string) {
	body, err := json.Marshal(at.put(value))
	if err != nil {
		panic(err) // a value that the generator has made
	}
	g.out = append(g.out, badRequest{operation: g.operation, what: at.path + ": " + what, body: body, code: code, path: at.path, text: text})
}

func (g *generator) violates(at place, s shape, what string, value any, text string) {
	g.add(at, what, value, "ValidationException", at.of(text))
	g.out[len(g.out)-1].hidden = s.Sensitive
}

// base is a value of a structure that has its required members only.
func (g *generator) base(t testing.TB, name string) map[string]any {
	t.Helper()
	s := g.model.Shapes[name]
	v := map[string]any{}
	for _, m := range s.Required {
		v[m] = g.valid(t, s.Members[m])
	}
	return v
}

func (g *generator) structure(t testing.TB, name string, at place) {
	t.Helper()
	s := g.model.Shapes[name]
	prefix := at.path
	if prefix != "" {
		prefix += "."
	}
	for _, m := range slices.Sorted(maps.Keys(s.Members)) {
		with := place{prefix + lowered(m), func(v any) any {
			whole := g.base(t, name)
			whole[m] = v
			return at.put(whole)
		}, member}
		if slices.Contains(s.Required, m) {
			without := g.base(t, name)
			delete(without, m)
			gone := place{with.path, func(any) any { return at.put(without) }, member}
			g.violates(gone, shape{}, "missing", nil, "not be null")
			g.violates(with, shape{}, "null", nil, "not be null")
		}
		g.value(t, s.Members[m], with)
	}
}

// value adds all that can be wrong with a value of a shape.
func (g *generator) value(t testing.TB, name string, at place) {
	t.Helper()
	s := g.model.Shapes[name]
	g.wrongTypes(s, at)
	switch s.Type {
	case "string":
		g.text(t, s, at)
	case "enum":
		for _, v := range []string{"NO_SUCH_VALUE", "", strings.ToLower(s.Enum[0]), s.Enum[0] + " ", s.Enum[0] + "\n"} {
			g.violates(at, s, fmt.Sprintf("%q", v), v, "satisfy enum value set: [")
		}
	case "blob":
		g.bounds(s, at, "length", func(n int) any { return make([]byte, n) })
		for _, v := range []string{"*", "AA", "AA==AA==", "-_-_", "AA\n==", "AB=="} {
			g.add(at, fmt.Sprintf("base64 %q", v), v, "SerializationException", "")
		}
	case "integer":
		g.bounds(s, at, "value", func(n int) any { return n })
		for _, v := range []string{"1.5", "2147483648", "-2147483649", "1e99", "1e0"} {
			g.add(at, v, json.RawMessage(v), "SerializationException", "")
		}
	case "timestamp":
		for _, v := range []string{"1e400", "253402300800", "-253402300800"} {
			g.add(at, v, json.RawMessage(v), "SerializationException", "")
		}
	case "list":
		g.list(t, s, at)
	case "map":
		g.stringMap(t, s, at)
	case "structure":
		g.structure(t, name, at)
	}
}

// wrongTypes adds every kind of JSON value that s is not.
func (g *generator) wrongTypes(s shape, at place) {
	fits := map[string]string{
		"string": "string", "enum": "string", "blob": "", "integer": "number", "timestamp": "number",
		"boolean": "bool", "list": "list", "map": "object", "structure": "object",
	}[s.Type]
	for kind, v := range map[string]any{
		"string": marker, "number": 7, "bool": true, "list": []any{}, "object": map[string]any{},
	} {
		if kind != fits {
			g.add(at, "a "+kind, v, "SerializationException", "")
		}
	}
}

// bounds adds values beyond both ends of a range.
func (g *generator) bounds(s shape, at place, what string, of func(int) any) {
	if s.Max != nil {
		g.violates(at, s, "too long", of(*s.Max+1), fmt.Sprintf("have %s less than or equal to %d", what, *s.Max))
	}
	if s.Min != nil && (*s.Min > 0 || what == "value") {
		g.violates(at, s, "too short", of(*s.Min-1), fmt.Sprintf("have %s greater than or equal to %d", what, *s.Min))
	}
	if what == "value" && s.Max != nil && s.Min != nil {
		g.violates(at, s, "largest", of(1<<31-1), fmt.Sprintf("have value less than or equal to %d", *s.Max))
		g.violates(at, s, "smallest", of(-1<<31), fmt.Sprintf("have value greater than or equal to %d", *s.Min))
	}
}

func (g *generator) text(t testing.TB, s shape, at place) {
	t.Helper()
	g.bounds(s, at, "length", func(n int) any { return strings.Repeat("a", n) })
	if s.Max != nil { // characters count, not bytes
		g.violates(at, s, "too long in é", strings.Repeat("é", *s.Max+1), fmt.Sprintf("have length less than or equal to %d", *s.Max))
	}
	if s.Pattern == "" {
		return
	}
	bad := 0
	for _, v := range append(samples, g.valid(t, s).(string)+"\n") {
		for len(v) > 0 && s.Min != nil && utf8.RuneCountInString(v) < *s.Min {
			v += v
		}
		if s.Max != nil && utf8.RuneCountInString(v) > *s.Max {
			v = string([]rune(v)[:*s.Max])
		}
		if v != "" && !g.matches(t, s, v) {
			bad++
			g.violates(at, s, fmt.Sprintf("pattern of %q", v[:min(len(v), 20)]), v, "satisfy regular expression pattern: "+s.Pattern)
		}
	}
	if bad == 0 {
		t.Errorf("%s: no sample fails the pattern %s", g.operation, s.Pattern)
	}
}

// generatedAlias is the alias name of a generated request.
const generatedAlias = "alias/generated"

// samples are texts of which each pattern of the model takes some and refuses
// some.
var samples = []string{
	"a", "default", "111122223333", "us-east-1", strings.Repeat("0a", 32), "s3.amazonaws.com",
	"arn:aws:s3:us-east-1:111122223333:bucket/a", generatedAlias,
	"a b", "!", "\t", "\x01", "Ā", "😀", "..", "a\n", "\na", "A_", "é", "a\u00a0b",
}

// valid is a value that breaks no constraint of its shape.
func (g *generator) valid(t testing.TB, of any) any {
	t.Helper()
	s, isShape := of.(shape)
	if !isShape {
		s = g.model.Shapes[of.(string)]
		if of == "KeyIdType" {
			return g.keyID
		}
	}
	switch s.Type {
	case "string":
		if of == "AliasNameType" {
			return generatedAlias
		}
		for _, v := range samples {
			n := utf8.RuneCountInString(v)
			if (s.Min == nil || n >= *s.Min) && (s.Max == nil || n <= *s.Max) && g.matches(t, s, v) {
				return v
			}
		}
	case "enum":
		return s.Enum[0]
	case "blob":
		return []byte(strings.Repeat("x", max(1, deref(s.Min))))
	case "integer":
		return max(1, deref(s.Min))
	case "timestamp":
		return 4102444800
	case "boolean":
		return true
	case "list":
		return []any{g.valid(t, s.Member)}
	case "map":
		return map[string]any{"k": "v"}
	case "structure":
		return g.base(t, of.(string))
	}
	t.Fatalf("%s: no sample is a valid %v", g.operation, of)
	return nil
}

func deref(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

var javaEscape = regexp.MustCompile(`\\u([0-9A-Fa-f]{4})`)

// matches is Java's matches(), of the whole text.
func (g *generator) matches(t testing.TB, s shape, v string) bool {
	t.Helper()
	if s.Pattern == "" {
		return true
	}
	if g.patterns[s.Pattern] == nil {
		g.patterns[s.Pattern] = must(regexp.Compile(`\A(?:` + javaEscape.ReplaceAllString(s.Pattern, `\x{$1}`) + `)\z`))(t)
	}
	return g.patterns[s.Pattern].MatchString(v)
}

// list adds lists that are too long or too short, and each thing that can be
// wrong with an element. AWS names a structure by its place and a scalar by its
// list.
func (g *generator) list(t testing.TB, s shape, at place) {
	t.Helper()
	g.bounds(s, at, "length", func(n int) any {
		items := make([]any, n)
		for i := range items {
			items[i] = g.valid(t, s.Member)
		}
		return items
	})
	second := place{at.path, func(v any) any { return at.put([]any{g.valid(t, s.Member), v}) }, inBrackets("Member")}
	if g.model.Shapes[s.Member].Type == "structure" {
		second.path, second.of = at.path+".2.member", member
	}
	g.add(second, "null element", nil, "SerializationException", "")
	g.value(t, s.Member, second)
}

func (g *generator) stringMap(t testing.TB, s shape, at place) {
	t.Helper()
	value := place{at.path, func(v any) any { return at.put(map[string]any{"k": v}) }, inBrackets("Map value")}
	g.add(value, "null entry", nil, "SerializationException", "")
	g.value(t, s.Value, value)
	key := g.model.Shapes[s.Key]
	if key.Min != nil || key.Max != nil || key.Pattern != "" {
		g.text(t, key, place{at.path, func(v any) any { return at.put(map[string]any{v.(string): "v"}) }, inBrackets("Map keys")})
	}
}

// malformed adds bodies that are no request at all.
func (g *generator) malformed(t testing.TB, base map[string]any) {
	t.Helper()
	good := string(must(json.Marshal(base))(t))
	secret := base64.StdEncoding.EncodeToString([]byte(marker))
	for what, body := range map[string]string{
		"cut off": good[:len(good)-1], "followed by more": good + "{}", "trailing comma": good[:len(good)-1] + ",}",
		"a list": "[" + good + "]", "a string": `"` + marker + `"`, "a number": "7", "null": "null", "text": marker,
		"member twice":  `{"KeyId":"` + g.keyID + `","KeyId":"` + secret + `"}`,
		"invalid UTF-8": "{\"KeyId\":\"\xff\"}", "lone surrogate": `{"KeyId":"\ud800"}`, "no quotes": "{KeyId:1}",
		"deep": strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000),
	} {
		g.out = append(g.out, badRequest{operation: g.operation, what: "body: " + what, body: []byte(body), code: "SerializationException"})
	}
	if n := len(base); n > 1 {
		g.out = append(g.out, badRequest{operation: g.operation, what: "nothing given", body: []byte("{}"), code: "ValidationException",
			text: fmt.Sprintf("%d validation errors detected: Value null at '", n)})
	}
}
