package awsjson

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"unicode/utf8"
)

// all lists every constraint of a scalar in brackets, which is how AWS
// describes the elements of a list or map.
func (c *check) all() string {
	if c.enum != nil {
		return "[Member must satisfy enum value set: " + c.enumText + "]"
	}
	var parts []string
	if c.shape.Max != nil {
		parts = append(parts, fmt.Sprintf("Member must have length less than or equal to %d", *c.shape.Max))
	}
	if c.shape.Min != nil {
		parts = append(parts, fmt.Sprintf("Member must have length greater than or equal to %d", *c.shape.Min))
	}
	if c.pattern != nil {
		parts = append(parts, "Member must satisfy regular expression pattern: "+c.shape.Pattern)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// show prints a value the way AWS's Java does. The bytes of a blob never
// appear.
func (c *check) show(v reflect.Value) string {
	switch c.plan.kind {
	case kindBlob:
		return fmt.Sprintf("java.nio.HeapByteBuffer[pos=0 lim=%d cap=%[1]d]", v.Len())
	case kindInteger:
		return fmt.Sprint(v.Int())
	case kindList:
		if c.element.plan.kind == kindStructure {
			return fmt.Sprintf("[%d items]", v.Len())
		}
		var b strings.Builder
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(printable(enumText(v.Index(i).String())))
		}
		b.WriteByte(']')
		return b.String()
	}
	return enumText(v.String())
}

// printable cuts a value that goes into an error message.
func printable(s string) string {
	const limit = 8192
	if len(s) <= limit {
		return s
	}
	end := limit
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.Clone(s[:end]) + "..."
}

// compilePattern translates a pattern of the model, which is Java's, to RE2. A
// value must match as a whole, as with Java's matches(), whether the pattern
// has anchors or not. The two dialects agree on everything that the model uses
// but \uXXXX, which RE2 writes \x{XXXX}, and \s, which in Java also takes
// vertical tab.
func compilePattern(pattern string) (func(string) bool, error) {
	if pattern == "" {
		return nil, nil
	}
	if class, ok := simpleClass(pattern); ok {
		return class, nil
	}
	re, err := regexp.Compile(`\A(?:` + translate(pattern) + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("compiling pattern %q: %w", pattern, err)
	}
	return re.MatchString, nil
}

var unicodeEscape = regexp.MustCompile(`\\u([0-9A-Fa-f]{4})`)

func translate(pattern string) string {
	pattern = unicodeEscape.ReplaceAllString(pattern, `\x{$1}`)
	return strings.ReplaceAll(pattern, `\s`, `\s\v`)
}

var oneClass = regexp.MustCompile(`^\^?(\[[^\[\]]+\])([+*])\$?$`)

// simpleClass handles patterns that are one repeated character class over
// Latin-1, which is nearly all of them, by a table: some of those values are
// 128 KiB long. The table is filled by the translated pattern itself.
func simpleClass(pattern string) (func(string) bool, bool) {
	parts := oneClass.FindStringSubmatch(pattern)
	if parts == nil {
		return nil, false
	}
	re, err := regexp.Compile(`\A` + translate(parts[1]) + `\z`)
	if err != nil || re.MatchString("\u0100") || re.MatchString("\U0010FFFF") {
		return nil, false
	}
	var table [256]bool
	for r := range rune(256) {
		table[r] = re.MatchString(string(r))
	}
	emptyOK := parts[2] == "*"
	return func(s string) bool {
		for _, r := range s {
			if r > 0xff || !table[r] {
				return false
			}
		}
		return emptyOK || s != ""
	}, true
}
