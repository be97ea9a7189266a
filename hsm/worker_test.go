package hsm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/trent-kms/trent/internal/testenv"
)

// TestErrorsCross: what errors.Is and errors.As find is the same on both sides.
func TestErrorsCross(t *testing.T) {
	errs := []error{
		&DeviceError{Doing: "encrypting", Code: pkcs11.CKR_DEVICE_ERROR},
		fmt.Errorf("signing: %w", &DeviceError{Doing: "signing", Code: pkcs11.CKR_PIN_INCORRECT}),
		fmt.Errorf("making: %w", &UnsupportedError{"ML_DSA_44", "CKM_ML_DSA", "it is absent"}),
		fmt.Errorf("%w: %w", ErrMaterial, &DeviceError{Doing: "trying", Code: pkcs11.CKR_GENERAL_ERROR}),
		errors.Join(ErrBusy, context.DeadlineExceeded),
		errors.New("nothing known, \xff"),
	}
	for _, sentinel := range sentinels {
		errs = append(errs, fmt.Errorf("doing it: %w: for a reason", sentinel))
	}
	for _, err := range errs {
		got := decodeError(encodeError(err))
		if want := strings.ToValidUTF8(err.Error(), "?"); got.Error() != want {
			t.Errorf("%q became %q", want, got)
		}
		for _, sentinel := range sentinels {
			if errors.Is(got, sentinel) != errors.Is(err, sentinel) {
				t.Errorf("%v: is %v: %v", err, sentinel, errors.Is(got, sentinel))
			}
		}
		var device, gotDevice *DeviceError
		if errors.As(err, &device) != errors.As(got, &gotDevice) || !reflect.DeepEqual(device, gotDevice) {
			t.Errorf("%v: %+v became %+v", err, device, gotDevice)
		}
		var lacks, gotLacks *UnsupportedError
		if errors.As(err, &lacks) != errors.As(got, &gotLacks) || !reflect.DeepEqual(lacks, gotLacks) {
			t.Errorf("%v: %+v became %+v", err, lacks, gotLacks)
		}
	}
}

// TestEveryErrorCrosses: who adds an exported error may have callers that look
// for it, on the other side of a worker too.
func TestEveryErrorCrosses(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	listed, declared := map[string]bool{}, []string{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range file.Decls {
			variables, ok := declaration.(*ast.GenDecl)
			if !ok || variables.Tok != token.VAR {
				continue
			}
			for _, spec := range variables.Specs {
				value := spec.(*ast.ValueSpec)
				if name := value.Names[0].Name; strings.HasPrefix(name, "Err") {
					declared = append(declared, name)
				} else if name == "sentinels" {
					for _, sentinel := range value.Values[0].(*ast.CompositeLit).Elts {
						if known, ok := sentinel.(*ast.Ident); ok {
							listed[known.Name] = true
						}
					}
				}
			}
		}
	}
	if len(declared) < len(listed) || len(listed) == 0 {
		t.Fatalf("%d errors are declared and %d of them listed", len(declared), len(listed))
	}
	for _, name := range declared {
		if !listed[name] {
			t.Errorf("%s loses its identity between processes: add it to the end of sentinels", name)
		}
	}
}

func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		field := func(name string) []byte {
			if b := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, name); len(b) > 0 {
				return b
			}
			return nil
		}
		c := call{
			op: callOp(rapid.Byte().Draw(t, "op")), use: Use(rapid.Byte().Draw(t, "use")), number: rapid.Uint32().Draw(t, "number"),
			ekt: field("ekt"), name: string(field("name")), second: string(field("second")),
			iv: field("iv"), aad: field("aad"), in: field("in"), extra: field("extra"),
		}
		r := reply{number: c.number, ekt: field("r.ekt"), out: field("out"), public: field("public"), detail: field("detail")}
		b := appendReply(appendRequest(nil, 7, &c), 8, statusFailed, &r)
		request, rest, _, err := nextFrame(b)
		if err != nil || request == nil {
			t.Fatal(err)
		}
		var gotCall call
		if id, err := parseRequest(request, &gotCall); id != 7 || err != nil || !reflect.DeepEqual(gotCall, c) {
			t.Fatalf("%d, %+v, %v, want %+v", id, gotCall, err, c)
		}
		frame, rest, _, err := nextFrame(rest)
		if err != nil || frame == nil || len(rest) != 0 {
			t.Fatal(err)
		}
		var gotReply reply
		if id, status, err := parseReply(frame, &gotReply); id != 8 || status != statusFailed || err != nil || !reflect.DeepEqual(gotReply, r) {
			t.Fatalf("%d, %d, %+v, %v, want %+v", id, status, gotReply, err, r)
		}
		for cut := range b[:len(request)+4] {
			if frame, _, want, err := nextFrame(b[:cut]); frame != nil || want <= cut || err != nil {
				t.Fatalf("cut at %d: %x, %d, %v", cut, frame, want, err)
			}
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(appendRequest(nil, 1, &call{op: callEncrypt, ekt: EKT("ekt"), in: []byte("in")})[4:])
	f.Add(appendReply(nil, 1, 0, &reply{out: []byte("out")})[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var c call
		if id, err := parseRequest(b, &c); err == nil && !bytes.Equal(appendRequest(nil, id, &c)[4:], b) {
			t.Error("a request that is not encoded so")
		}
		var r reply
		if id, status, err := parseReply(b, &r); err == nil && !bytes.Equal(appendReply(nil, id, status, &r)[4:], b) {
			t.Error("a reply that is not encoded so")
		}
	})
}

// TestEveryCallCrosses makes each operation through a worker.
func TestEveryCallCrosses(t *testing.T) {
	cfg, _ := newDomainConfig(t, 2)
	d := openDomain(t, cfg)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	aes, made, err := d.GenerateAES(ctx)
	must(err)
	if made.Mechanism == "" || made.Device.Label == "" {
		t.Errorf("provenance %+v", made)
	}
	sealed, err := sealBlob(ctx, d, aes, nil)
	must(err)
	if plain, err := openBlob(ctx, d, aes, sealed); err != nil || plain == nil || len(plain) != 0 {
		t.Errorf("empty plaintext: %v, %v", plain, err)
	}
	sealed[0] ^= 1
	if _, err := openBlob(ctx, d, aes, sealed); !errors.Is(err, ErrInvalidCiphertext) {
		t.Errorf("forged: %v", err)
	}
	if _, err := sealBlob(ctx, d, append(aes[:len(aes)-1:len(aes)-1], aes[len(aes)-1]^1), nil); !errors.Is(err, ErrInvalidEKT) {
		t.Errorf("altered EKT: %v", err)
	}
	if value, err := d.CheckValue(ctx, aes); err != nil || len(value) != 16 {
		t.Errorf("check value %x, %v", value, err)
	}
	secret, err := d.ImportSecret(ctx, bytes.Repeat([]byte("s"), 40))
	must(err)
	mac, err := d.HMAC(ctx, secret, []byte("message"))
	must(err)
	again, err := d.MAC(ctx, secret, "HMAC_SHA_256", []byte("message"))
	must(err)
	if !bytes.Equal(mac, again) {
		t.Error("HMAC and MAC differ")
	}
	random := make([]byte, 10000)
	must(d.Random(ctx, random))
	if bytes.Count(random, []byte{0}) > 200 {
		t.Error("random bytes are missing")
	}
	must(d.Supports("ECC_NIST_P256", UseSign))
	var lacks *UnsupportedError
	if err := d.Supports("ML_DSA_44", UseSign); !errors.As(err, &lacks) || lacks.Mechanism == "" {
		t.Errorf("ML_DSA_44: %v", err)
	}
	pair, err := d.Generate(ctx, "ECC_NIST_P256", UseSign)
	must(err)
	digest := bytes.Repeat([]byte("d"), 32)
	signature, err := d.Sign(ctx, pair.EKT, "ECDSA_SHA_256", digest)
	must(err)
	must(d.VerifySignature(ctx, "ECC_NIST_P256", pair.PublicKey, "ECDSA_SHA_256", digest, signature))
	digest[0] ^= 1
	if err := d.VerifySignature(ctx, "ECC_NIST_P256", pair.PublicKey, "ECDSA_SHA_256", digest, signature); !errors.Is(err, ErrSignature) {
		t.Errorf("forged signature: %v", err)
	}
	agreeing, err := d.Generate(ctx, "ECC_NIST_P256", UseAgree)
	must(err)
	if shared, err := d.Agree(ctx, agreeing.EKT, pair.PublicKey); err != nil || len(shared) != 32 {
		t.Errorf("shared secret of %d bytes, %v", len(shared), err)
	}
	private, public, err := d.GenerateDataKeyPair(ctx, "ECC_NIST_P384")
	must(err)
	if len(private) == 0 || len(public) == 0 {
		t.Error("half a data key pair")
	}
	must(d.SupportsImport("RSAES_OAEP_SHA_1", "SYMMETRIC_DEFAULT", UseEncrypt))
	wrapping, public, err := d.GenerateWrappingKey(ctx, "RSA_2048")
	must(err)
	i := &importer{t: t, openssl: testenv.Program(t, "openssl"), spki: public}
	material := make([]byte, 32)
	_, _ = rand.Read(material)
	imported, err := d.Import(ctx, wrapping, "RSAES_OAEP_SHA_1", "SYMMETRIC_DEFAULT", UseEncrypt, i.wrap("RSAES_OAEP_SHA_1", material))
	must(err)
	if len(imported.CheckValue) == 0 || imported.Provenance.Device.Label == "" {
		t.Errorf("imported %+v", imported)
	}
	d.Forget(aes)
	must(d.MarkActive(ctx))
	generation, sum, err := d.Sum(ctx, []byte("row"))
	must(err)
	if ok, err := d.Verify(ctx, generation, []byte("other row"), sum); ok || err != nil {
		t.Errorf("another row: %v, %v", ok, err)
	}
}

// TestCallerWalksAway: a caller's context ends its wait and nothing else.
func TestCallerWalksAway(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	cfg.Limits.Call = 20 * time.Second
	d := openDomain(t, cfg)
	pid := signalWorker(t, d, 0, syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, err := d.Sum(ctx, []byte("row")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call to a worker that is stopped: %v", err)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, d, 4)
	l.goOn(t, 100)
	if workerOf(d, 0) != pid {
		t.Error("a caller that went cost the worker")
	}
}

// TestDeadMember: a member whose token is gone costs no call, and comes back.
func TestDeadMember(t *testing.T) {
	cfg, registry := newDomainConfig(t, 2)
	tokens := filepath.Join(filepath.Dir(strings.TrimPrefix(cfg.Members[1].Environment[0], "SOFTHSM2_CONF=")), "tokens")
	away := tokens + ".away"
	if err := os.Rename(tokens, away); err != nil {
		t.Fatal(err)
	}
	d := openDomain(t, cfg)
	if h := d.Health(); !h[0].Serves || h[1].Serves || h[1].Stopped || h[1].Err == nil {
		t.Errorf("health %+v", h)
	}
	l := startLoad(t, d, 8)
	l.goOn(t, 500)
	if got := metric(t, registry, "trent_hsm_member_up", "m1"); got != 0 {
		t.Errorf("member_up of the dead member is %v", got)
	}
	back := time.Now()
	if err := os.Rename(away, tokens); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the member's return", func() bool { return d.Health()[1].Serves })
	t.Logf("back after %s", time.Since(back))
	l.goOn(t, 500)
	if got := metric(t, registry, "trent_hsm_member_up", "m1"); got != 1 {
		t.Errorf("member_up of the member that is back is %v", got)
	}
	for _, member := range []string{"m0", "m1"} {
		if metric(t, registry, "trent_hsm_operation_seconds", member) == 0 {
			t.Errorf("member %s has counted no operation", member)
		}
	}
}

// metric sums a member's samples, or their counts.
func metric(t *testing.T, registry *prometheus.Registry, name, member string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if family.GetName() == name && label.GetName() == "member" && label.GetValue() == member {
					sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
					found = true
				}
			}
		}
	}
	if !found {
		t.Fatalf("no metric %s of %s", name, member)
	}
	return sum
}

// TestAllMembersDead: calls fail as unavailable, soon and then at once.
func TestAllMembersDead(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	cfg.Patience = 300 * time.Millisecond
	d := openDomain(t, cfg)
	tokens := filepath.Join(filepath.Dir(strings.TrimPrefix(cfg.Members[0].Environment[0], "SOFTHSM2_CONF=")), "tokens")
	if err := os.Rename(tokens, tokens+".away"); err != nil {
		t.Fatal(err)
	}
	signalWorker(t, d, 0, syscall.SIGKILL)
	for range 2 {
		if _, _, err := d.Sum(t.Context(), []byte("row")); !errors.Is(err, ErrUnavailable) || !errors.Is(err, ErrModule) && !errors.Is(err, errLost) {
			t.Errorf("without a token: %v", err)
		}
	}
	eventually(t, "a failure at once", func() bool { // of some call, on a slow machine
		began := time.Now()
		if err := d.Ping(t.Context()); !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
		return time.Since(began) < cfg.Patience/2
	})
}

// TestWrongPINStops: a refused PIN is not tried again by any respawn.
func TestWrongPINStops(t *testing.T) {
	cfg, _ := newDomainConfig(t, 2)
	cfg.Members[1].PIN = NewPIN([]byte("9999-wrong"))
	d := openDomain(t, cfg)
	h := d.Health()[1]
	if h.Serves || !h.Stopped || !errors.Is(h.Err, ErrPINIncorrect) {
		t.Errorf("health %+v", h)
	}
	time.Sleep(time.Second)
	if got := metric(t, cfg.Metrics.(*prometheus.Registry), "trent_hsm_worker_starts_total", "m1"); got != 1 {
		t.Errorf("%v workers were started on a wrong PIN", got)
	}
	cfg.Members = cfg.Members[1:]
	if _, err := OpenDomain(t.Context(), cfg); !errors.Is(err, ErrPINIncorrect) {
		t.Errorf("a domain whose only PIN is wrong: %v", err)
	}
}

// TestWorkersEndWithParent kills a process that serves: its workers go too,
// even one that is stopped.
func TestWorkersEndWithParent(t *testing.T) {
	if conf := os.Getenv("TRENT_TEST_PARENT"); conf != "" {
		serveUntilKilled(t)
		return
	}
	cfg, _ := newDomainConfig(t, 1)
	m := cfg.Members[0]
	cmd := exec.Command(os.Args[0], "-test.run", "^TestWorkersEndWithParent$", "-test.v") //nolint:gosec // G204: ourselves
	cmd.Env = append(os.Environ(), "TRENT_TEST_PARENT="+m.Module+"\n"+m.TokenLabel+"\n"+m.PIN.reveal(), m.Environment[0])
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var printed []byte
	worker := 0
	for worker == 0 {
		b := make([]byte, 1000)
		n, err := out.Read(b)
		printed = append(printed, b[:n]...)
		if err != nil {
			t.Fatalf("%v: %s", err, printed)
		}
		if _, after, found := bytes.Cut(printed, []byte("worker=")); found && bytes.ContainsRune(after, '\n') {
			worker, _ = strconv.Atoi(strings.TrimSpace(strings.SplitN(string(after), "\n", 2)[0]))
		}
	}
	if err := errors.Join(syscall.Kill(worker, syscall.SIGSTOP), cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the worker's end", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", worker))
		return err != nil || bytes.Contains(stat, []byte(") Z ")) // dead, if init does not reap
	})
}

func serveUntilKilled(t *testing.T) {
	parts := strings.Split(os.Getenv("TRENT_TEST_PARENT"), "\n")
	d, err := OpenDomain(context.Background(), DomainConfig{ID: testDomain, Members: []MemberConfig{{
		Config: Config{Module: parts[0], TokenLabel: parts[1], PIN: NewPIN([]byte(parts[2]))},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("worker=%d\n", workerOf(d, 0))
	time.Sleep(time.Minute)
}

// TestLeakIsBounded is a short form of trent-bench's million: a library that
// leaks costs its worker before it has cost more than the bound.
func TestLeakIsBounded(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	cfg.RetireUnwraps = 3000
	d := openDomain(t, cfg)
	key := newDomainKey(t, d)
	first := workerOf(d, 0)
	for range 4000 {
		if _, err := d.CheckValue(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a successor", func() bool { pid := workerOf(d, 0); return pid != 0 && pid != first })
}

func newDomainKey(t *testing.T, d *Domain) EKT {
	t.Helper()
	key, _, err := d.GenerateAES(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return key
}
