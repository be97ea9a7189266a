package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"
)

// transcript is what an auditor gets of a ceremony: each step with its time,
// what was shown, and what the people present answered. Secrets never pass
// through it. It ends in a digest of itself, to be signed on paper.
type transcript struct {
	ctx  context.Context //nolint:containedctx // of the ceremony, which is one call
	in   <-chan string   // lines; closed after the last one
	out  io.Writer
	file *os.File
	sum  hash.Hash
	step int
}

// errAbandoned ends a ceremony at which somebody said no.
var errAbandoned = errors.New("the ceremony was abandoned: what was done is in the transcript; run it again to go on")

// openTranscript begins a transcript. It asks until ctx ends, which is a no.
func openTranscript(ctx context.Context, path string, in io.Reader, out io.Writer) (*transcript, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%s exists: a transcript is never written over; name another file with --transcript", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the transcript: %w", err)
	}
	return &transcript{ctx: ctx, in: lines(ctx, in), out: out, file: file, sum: sha256.New()}, nil
}

// lines reads in beside the ceremony: nothing else ends a read of a terminal.
func lines(ctx context.Context, in io.Reader) <-chan string {
	read := make(chan string)
	go func() {
		defer close(read)
		for scanner := bufio.NewScanner(in); scanner.Scan(); {
			select {
			case read <- scanner.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return read
}

// line writes one line to the transcript, on disk before the next step.
func (t *transcript) line(kind, text string) error {
	text = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text)
	line := fmt.Sprintf("%s  %2d  %-8s  %s\n", time.Now().UTC().Format(time.RFC3339), t.step, kind, text)
	t.sum.Write([]byte(line))
	_, err := t.file.WriteString(line)
	if err == nil {
		err = t.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("writing the transcript: %w", err)
	}
	return nil
}

// begin is the heading of a step.
func (t *transcript) begin(title string) error {
	t.step++
	_, _ = fmt.Fprintf(t.out, "\n%d. %s\n", t.step, title)
	return t.line("step", title)
}

// fact records what was found or done, and shows it.
func (t *transcript) fact(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	_, _ = fmt.Fprintf(t.out, "   %s\n", text)
	return t.line("fact", text)
}

// ask wants an answer in words.
func (t *transcript) ask(question string) (string, error) {
	for {
		_, _ = fmt.Fprintf(t.out, "   %s\n   > ", question)
		var text string
		answered := false
		select {
		case text, answered = <-t.in:
		case <-t.ctx.Done():
		}
		if t.ctx.Err() != nil {
			return "", errors.Join(errAbandoned, t.line("end", "interrupted at: "+question))
		}
		if !answered {
			return "", errors.Join(errAbandoned, t.line("end", "no answer to: "+question))
		}
		if answer := strings.TrimSpace(text); answer != "" {
			return answer, errors.Join(t.line("question", question), t.line("answer", answer))
		}
	}
}

// agree wants a yes.
func (t *transcript) agree(statement string) error {
	answer, err := t.ask(statement + " (yes or no)")
	if err == nil && !strings.EqualFold(answer, "yes") {
		return errors.Join(errAbandoned, t.line("end", "not agreed to: "+statement))
	}
	return err
}

// ends is how much compare wants of what nobody can make to order, such as a
// serial number.
const ends = 6

// compare has somebody type, from another source, the last characters of what
// is shown here, or all of it where it has no more. A yes would be typed unread.
func (t *transcript) compare(what, value, source string, last int) error {
	want := value[max(0, len(value)-last):]
	asked := what
	if len(want) < len(value) {
		asked = fmt.Sprintf("the last %d characters of %s", last, what)
	}
	for range 3 {
		answer, err := t.ask(fmt.Sprintf("Type %s, as read from %s.", asked, source))
		if err != nil {
			return err
		}
		if strings.EqualFold(answer, want) {
			return t.fact("%s is %s, as read from %s", what, value, source)
		}
		if err := t.fact("that is not how %s ends here", what); err != nil {
			return err
		}
	}
	return errors.Join(errAbandoned, t.line("end", what+" does not agree"))
}

// close ends the transcript with its digest; cause is what the ceremony came to.
func (t *transcript) close(cause error) error {
	end := "the ceremony is complete"
	if cause != nil {
		end = "the ceremony did not come to its end: " + cause.Error()
	}
	err := t.line("end", end)
	digest := hex.EncodeToString(t.sum.Sum(nil))
	_, writeErr := fmt.Fprintf(t.file, "SHA-256 of the lines above: %s\n", digest)
	err = errors.Join(cause, err, writeErr, t.file.Close())
	_, _ = fmt.Fprintf(t.out, "\nThe transcript is in %s.\nThose present sign its SHA-256: %s\n", t.file.Name(), digest)
	return err
}
