package softhsmtest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/internal/testenv"
)

// A typed answer is what an officer types at a prompt that contains a text.
type typed struct{ prompt, text string }

// officer runs a ceremony and types the first answer whose prompt is asked,
// once the prompt is there. It returns what stood on the screen.
func (d *deployment) officer(t *testing.T, answers []typed, args ...string) (screen string, err error) {
	t.Helper()
	cmd := d.command(t, append([]string{"ceremony"}, args...)...)
	keyboard := must(cmd.StdinPipe())(t)
	display := must(cmd.StdoutPipe())(t)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	answered, buf := 0, make([]byte, 4096)
	for {
		n, readErr := display.Read(buf)
		seen.Write(buf[:n])
		if new := seen.String()[answered:]; strings.HasSuffix(new, "\n   > ") {
			answered = seen.Len()
			lines := strings.Split(strings.TrimSuffix(new, "\n   > "), "\n")
			text := answerTo(t, answers, lines[len(lines)-1], new)
			if generation, member, read := strings.Cut(strings.TrimPrefix(text, "READ "), " of "); read {
				text = fingerprint.FindString(d.mustDomain(t, "fingerprint", "--generation", generation, "--member", member))
			}
			if text == "" {
				_ = keyboard.Close()
			} else if _, err := io.WriteString(keyboard, text+"\n"); err != nil {
				t.Fatal(err)
			}
		}
		if readErr != nil {
			break
		}
	}
	err = cmd.Wait()
	return seen.String() + log.String(), err
}

var shownInRehearsal = regexp.MustCompile(`shows ([0-9a-f-]+)\.\)`)

func answerTo(t *testing.T, answers []typed, prompt, screen string) string {
	t.Helper()
	for _, a := range answers {
		if !strings.Contains(prompt, a.prompt) {
			continue
		}
		if shown := shownInRehearsal.FindStringSubmatch(screen); a.text == "SHOWN" && shown != nil {
			if strings.Contains(prompt, "the last 6 characters") {
				return shown[1][len(shown[1])-6:]
			}
			return shown[1]
		}
		return a.text
	}
	t.Errorf("unexpected prompt %q", prompt)
	return ""
}

func (d *deployment) serial(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Program(t, "softhsm2-util"), "--show-slots")
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+d.conf)
	out := must(cmd.Output())(t)
	found := regexp.MustCompile(`Serial number:\s+([0-9a-f]+)`).FindSubmatch(out)
	if found == nil {
		t.Fatalf("no serial number:\n%s", out)
	}
	return string(found[1])
}

func routine(serial, deployment string) []typed {
	return []typed{
		{"Who is present", "A. Officer (security officer), B. Witness (auditor)"},
		{"last 6 characters of the token's serial", serial},
		{"last 6 characters of the deployment's id", deployment},
		{"What is the backup called", "backup-1, encrypted stick 7, safe in room 12"},
		{"How was it checked", "restored to the spare device"},
		{"(yes or no)", "yes"},
	}
}

// wantTranscript demands that the file is what an auditor can check, and holds
// no secret.
func wantTranscript(t *testing.T, path string, wants []string, secrets ...string) string {
	t.Helper()
	text := string(must(os.ReadFile(path))(t))
	body, digest, found := strings.Cut(text, "SHA-256 of the lines above: ")
	sum := sha256.Sum256([]byte(body))
	if !found || strings.TrimSpace(digest) != hex.EncodeToString(sum[:]) {
		t.Errorf("the transcript's digest is not that of its lines:\n%s", text)
	}
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("the transcript lacks %q:\n%s", want, text)
		}
	}
	for _, secret := range secrets {
		if secret == "" || strings.Contains(text, secret) {
			t.Errorf("a secret is in the transcript, or unknown")
		}
	}
	for _, line := range strings.Split(strings.TrimSpace(body), "\n") {
		if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  [ \d]\d  \w+ `).MatchString(line) {
			t.Errorf("a line of another form: %q", line)
		}
	}
	return text
}

var transcribedID = regexp.MustCompile(`deployment ([0-9a-f-]{36})`)

// TestCeremony holds set-up, backup and recovery as officers do.
func TestCeremony(t *testing.T) {
	d := prepare(t, testenv.Postgres(t))
	d.endWith(t)
	serial := d.serial(t)
	at := func(name string) string { return filepath.Join(d.dir, name) }
	setup := func(transcript string, answers []typed) (string, error) {
		return d.officer(t, answers, "setup", "--credentials", at("admin.env"), "--transcript", at(transcript))
	}
	// Another token than the one that they hold in their hands.
	if screen, err := setup("wrong.txt", routine("ffffff", "")); err == nil || !strings.Contains(screen, "abandoned") {
		t.Errorf("a serial number that does not agree: %v\n%s", err, screen)
	}
	if text := wantTranscript(t, at("wrong.txt"), []string{"does not agree"}, userPIN); strings.Contains(text, "The domain keys") {
		t.Error("keys were made on a token that was not recognised")
	}
	no := append([]typed{{"are to be made on this token now", "no"}}, routine(serial[len(serial)-6:], "")...)
	if screen, err := setup("no.txt", no); err == nil || !strings.Contains(screen, "abandoned") {
		t.Errorf("a no: %v\n%s", err, screen)
	}
	// Interrupted after the keys were made, and run again.
	gone := append([]typed{{"What is the backup called", ""}}, routine(serial[len(serial)-6:], "")...)
	if screen, err := setup("interrupted.txt", gone); err == nil {
		t.Errorf("an interrupted set-up succeeded:\n%s", screen)
	}
	screen, err := setup("setup.txt", routine(serial[len(serial)-6:], ""))
	if err != nil {
		t.Fatalf("%v\n%s", err, screen)
	}
	credentials := must(os.ReadFile(at("admin.env")))(t)
	d.admin = secretKey{string(accessKeyID.Find(credentials)), string(accessKey.FindSubmatch(credentials)[1])}
	text := wantTranscript(t, at("setup.txt"), []string{
		"B. Witness (auditor)", "the token's serial number is " + serial, "generation 1: active, locked; on this token: whole",
		"encrypted stick 7", "confirmed for generation 1", "the ceremony is complete",
	}, userPIN, officerPIN, d.admin.Secret)
	if screen, err := setup("setup.txt", nil); err == nil || !strings.Contains(screen, "never written over") {
		t.Errorf("a transcript was written over: %v\n%s", err, screen)
	}
	d.serve(t)
	c := d.client(t)
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	d.mustDomain(t, "rotate", "--no-wait")
	if screen, err := d.officer(t, routine("", ""), "backup", "--operator", "A. Officer", "--transcript", at("backup.txt")); err != nil {
		t.Fatalf("%v\n%s", err, screen)
	}
	wantTranscript(t, at("backup.txt"), []string{"confirmed for generation 2", "the operator is A. Officer"})
	d.mustDomain(t, "activate", "--generation", "2")
	d.followed(t, 2, c)
	pair := must(c.CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: types.KeySpecEccNistP256, KeyUsage: types.KeyUsageTypeSignVerify}))(t)

	restored := d.restore(t)
	id := transcribedID.FindStringSubmatch(text)[1]
	screen, err = restored.officer(t, routine("", id[len(id)-6:]), "recovery", "--transcript", at("recovery.txt"))
	if err != nil {
		t.Fatalf("%v\n%s", err, screen)
	}
	wantTranscript(t, at("recovery.txt"), []string{
		"access key " + d.admin.ID + " of admin opens", "generation 2: active",
		"generation 1, class aes: a key of KMS key " + *key.KeyId + " opens",
		"generation 1, class private: no KMS key has one, so there is none to try",
		"generation 2, class private: a key of KMS key " + *pair.KeyMetadata.KeyId + " opens",
	}, d.admin.Secret)
	restored.serve(t)
	wantDecrypt(t, restored.client(t), blob, marker, nil)
}

// TestCeremonyEnrol: a member is added by people who read its fingerprint on
// another machine, all of it, while the ceremony waits.
func TestCeremonyEnrol(t *testing.T) {
	d := newDeployment(t, "")
	d.members(t, map[string]string{"first": d.conf, "second": d.another(t, "second")})
	hold := func(transcript string, answers ...typed) (screen, text string, err error) {
		path := filepath.Join(d.dir, transcript)
		screen, err = d.officer(t, append(answers, routine("", "")...), "enrol", "--operator", "A. Officer", "--transcript", path)
		return screen, wantTranscript(t, path, nil, userPIN, officerPIN), err
	}
	first := typed{"Type the fingerprint of member first", "READ 2 of first"}
	shown := fingerprint.FindString(d.mustDomain(t, "fingerprint", "--generation", "2", "--member", "second"))
	for _, wrong := range []string{shown[len(shown)-6:], strings.Repeat("0000-", 15) + "0000"} {
		if screen, _, err := hold(wrong+".txt", first, typed{"fingerprint of member second", wrong}); err == nil || !strings.Contains(screen, "abandoned") {
			t.Errorf("%s was taken for a fingerprint: %v\n%s", wrong, err, screen)
		}
	}
	no := typed{"This machine was installed for the purpose", "no"}
	second := typed{"Type the fingerprint of member second", "READ 2 of second"}
	if screen, _, err := hold("no.txt", first, second, no); err == nil {
		t.Errorf("a no:\n%s", screen)
	}
	if all := d.generations(t); len(all) != 1 {
		t.Fatalf("made before people agreed: %+v", all)
	}
	screen, text, err := hold("enrolment.txt", first, second)
	if err != nil {
		t.Fatalf("%v\n%s", err, screen)
	}
	list := d.memberList(t)
	wantSaid(t, text, "A. Officer (security officer), B. Witness (auditor)", "the operator is A. Officer", "the fingerprint of member second is "+shown,
		"serial number "+list["second"].Serial+": SoftHSM project SoftHSM v2, firmware ", "making generation 2 on member first, for 2 members", "generation 2 is active",
		"only token "+list["first"].Serial+" can use what generation 1 wraps", "serial number "+list["second"].Serial+": enrolled; whole generations: 2", "the ceremony is complete")
	d.holds(t, map[string][]int{"first": {1, 2}, "second": {2}})
}

// TestCeremonyInterrupted: Ctrl-C at a question is a no, and so is a terminal
// that goes away.
func TestCeremonyInterrupted(t *testing.T) {
	d := prepare(t, testenv.Postgres(t))
	d.endWith(t)
	heeded := make(chan os.Signal, 1) // a program hears of no SIGHUP if these tests run under nohup
	signal.Notify(heeded, syscall.SIGHUP)
	defer signal.Stop(heeded)
	for _, sent := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP} {
		t.Run(sent.String(), func(t *testing.T) { d.ceremonyInterrupted(t, sent) })
	}
}

func (d *deployment) ceremonyInterrupted(t *testing.T, sent os.Signal) {
	path := filepath.Join(t.TempDir(), "interrupted.txt")
	cmd := d.command(t, "ceremony", "setup", "--credentials", filepath.Join(d.dir, "admin.env"), "--transcript", path)
	must(cmd.StdinPipe())(t)
	display := must(cmd.StdoutPipe())(t)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	unheard := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer unheard.Stop()
	var seen strings.Builder
	for buf := make([]byte, 4096); ; {
		n, err := display.Read(buf)
		seen.Write(buf[:n])
		if strings.HasSuffix(seen.String(), "\n   > ") {
			_ = cmd.Process.Signal(sent)
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(log.String(), "the ceremony was abandoned") {
		t.Errorf("%v\n%s%s", err, &seen, &log)
	}
	wantTranscript(t, path, []string{"interrupted at: Who is present", "the ceremony did not come to its end"}, userPIN)
}

// TestCeremonyRehearsal needs nothing but the programs.
func TestCeremonyRehearsal(t *testing.T) {
	dir := t.TempDir()
	d := &deployment{dir: dir}
	cmd := []string{"rehearsal", "--transcript", filepath.Join(dir, "rehearsal.txt")}
	screen, err := d.officer(t, append(routine("SHOWN", "SHOWN"), typed{"Type the fingerprint of member", "SHOWN"}), cmd...)
	if err != nil {
		t.Fatalf("%v\n%s", err, screen)
	}
	wantTranscript(t, filepath.Join(dir, "rehearsal.txt"), []string{"THIS IS A REHEARSAL", "confirmed for generation 1", "the fingerprint of member second is ", "generation 2 is active", "of admin opens", "the ceremony is complete"})
	folder := regexp.MustCompile(`/\S*trent-rehearsal-\w+`).FindString(screen)
	if _, err := os.Stat(folder); folder == "" || !os.IsNotExist(err) {
		t.Errorf("the rehearsal left its folder %q: %v", folder, err)
	}
}
