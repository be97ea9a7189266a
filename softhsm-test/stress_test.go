package softhsmtest

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/internal/testenv"
)

var (
	stressFor  = flag.Duration("stress", 6*time.Second, "for how long TestStress kills")
	stressSeed = flag.Uint64("stress-seed", 0, "what TestStress draws from; 0 = another each time")
)

const (
	stressClients = 8
	stressAliases = 5
	stressKeys    = 12 // before clients make more
)

// A stress is two hosts on one database, whatever befalls them, and clients
// that remember what they saw.
type stress struct {
	d      *deployment
	random *rand.Rand // the test's own goroutine's
	hosts  [2]atomic.Pointer[server]
	clock  string // file: how far the hosts' clocks are ahead

	mu   sync.Mutex
	keys map[string][]string // guarded by mu; ids by Region
	saw  []sight             // guarded by mu
}

// A sight is one call as its client saw it.
type sight struct {
	operation  string
	began, end time.Time
	requestID  string // "" = no answer came
	code       string // of the error; "-" = no answer came
	key        string // Region and id, where the call succeeded
	alias      string // by which the call named the key, or ""
	blob       []byte // that Encrypt made
	text       string // that was sealed in it
	state      string // that DescribeKey showed
	shown      string // description that DescribeKey showed
}

// TestStress has clients do all kinds of calls at two hosts of one database,
// which are killed, stopped and cut off meanwhile, as are their workers and
// Postgres; then it replays the audit log and demands that the database is what
// that comes to, and that every client saw nothing else.
func TestStress(t *testing.T) {
	seed := *stressSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-stress-seed=%d", seed)
	cluster := testenv.OwnPostgres(t)
	d := prepare(t, cluster.URL("postgres"))
	d.tags = "failpoint" // for its clock
	d.endWith(t)
	d.initialise(t)
	s := &stress{d: d, random: rand.New(rand.NewPCG(seed, 0)), keys: map[string][]string{}, clock: filepath.Join(d.dir, "clock")}
	for i := range s.hosts {
		s.start(t, i)
	}
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for i := range stressClients {
		clients.Go(func() { s.use(rand.New(rand.NewPCG(seed, uint64(i+1))), i%2 == 0, stop) })
	}
	s.disturb(t, time.Now().Add(*stressFor))
	close(stop)
	clients.Wait()
	for i := range s.hosts { // or a deletion that is due may come between the log and the rows
		_ = s.hosts[i].Load().stop()
	}
	must(0, os.WriteFile(s.clock, []byte("0s"), 0o600))(t) // nothing more becomes due
	s.check(t)
}

// start runs a host, again if need be: Postgres may be away for a moment.
func (s *stress) start(t *testing.T, i int) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); ; {
		server := s.d.launch(t, fmt.Sprintf("TRENT_HOST=host-%d", i), "TRENT_TEST_CLOCK="+s.clock)
		err := server.ready(20 * time.Second)
		if err == nil {
			s.hosts[i].Store(server)
			return
		}
		server.kill()
		if time.Now().After(end) {
			t.Fatalf("host-%d does not come back: %v\n%s", i, err, readLog(t, server))
		}
	}
}

// disturb does its worst until end, one thing after the other.
func (s *stress) disturb(t *testing.T, end time.Time) {
	t.Helper()
	ahead, done := time.Duration(0), map[string]int{}
	for time.Now().Before(end) {
		time.Sleep(time.Duration(s.random.IntN(900)) * time.Millisecond)
		i := s.random.IntN(len(s.hosts))
		server := s.hosts[i].Load()
		what := []string{"kill", "kill", "kill", "stop", "stop", "worker", "connections", "crash", "clock"}[s.random.IntN(9)]
		done[what]++
		switch what {
		case "kill":
			server.kill()
			s.start(t, i)
		case "stop":
			must(0, server.cmd.Process.Signal(syscall.SIGSTOP))(t)
			time.Sleep(time.Duration(s.random.Int64N(int64(*stressFor) / 4)))
			must(0, server.cmd.Process.Signal(syscall.SIGCONT))(t)
		case "worker":
			for _, pid := range server.workers(t) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		case "connections":
			_, _ = s.d.pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE application_name = 'trent' AND random() < 0.7`)
		case "crash":
			s.crashPostgres(t)
		case "clock":
			ahead += 50 * time.Hour
			must(0, os.WriteFile(s.clock, []byte(ahead.String()), 0o600))(t)
		}
	}
	for i := range s.hosts {
		if server := s.hosts[i].Load(); server.ready(20*time.Second) != nil {
			t.Errorf("host-%d is not ready any more:\n%s", i, readLog(t, server))
		}
	}
	eventually(t, "Postgres's answer after its last crash", func() bool {
		s.d.pool.Reset() // the crash has cut its connections
		return s.d.pool.Ping(t.Context()) == nil
	})
	t.Logf("done: %v", done)
}

// A stressor is one client at one of its calls.
type stressor struct {
	*stress
	random *rand.Rand
	region string
	c      *kms.Client // of a host, in region
	saw    *sight
}

// use is one client: one that changes, or one that only uses what there is.
func (s *stress) use(random *rand.Rand, changes bool, stop <-chan struct{}) {
	calls := stressCalls
	if !changes {
		calls = stressUses
	}
	through := &recorder{}
	for {
		select {
		case <-stop:
			return
		default:
		}
		do := calls[random.IntN(len(calls))]
		region := []string{region, region, otherRegion}[random.IntN(3)]
		c := newRegionClient(s.hosts[random.IntN(len(s.hosts))].Load().url, region, s.d.admin, through)
		saw := sight{operation: do.name, began: time.Now()}
		_ = do.call(stressor{s, random, region, c, &saw})
		saw.end = time.Now()
		if answers := through.all(); len(answers) == 1 {
			saw.requestID = answers[0].RequestID
			saw.code += answers[0].ErrorCode
			through.calls = nil
		} else {
			saw.code = "-"
			time.Sleep(20 * time.Millisecond) // the host is away
		}
		s.mu.Lock()
		s.saw = append(s.saw, saw)
		s.mu.Unlock()
	}
}

// pick names a key of the Region: often the newest, on which calls then meet,
// or one of those after it, of which some are not deleted yet.
func (s stressor) pick() *string {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := s.keys[s.region]
	if len(keys) == 0 {
		return aws.String("00000000-0000-0000-0000-000000000000")
	}
	from := max(0, len(keys)-[]int{1, stressKeys, len(keys)}[s.random.IntN(3)])
	return aws.String(keys[from+s.random.IntN(len(keys)-from)])
}

// made notes a key that there is now.
func (s *stress) made(region, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[region] = append(s.keys[region], id)
}

func stressAlias(random *rand.Rand) *string {
	return aws.String(fmt.Sprintf("alias/stress-%d", random.IntN(stressAliases)))
}

// regional is what keys are known by: "Region/id".
func regional(arn string) string {
	parts := strings.Split(arn, ":") // arn:aws:kms:Region:account:key/id
	return parts[3] + strings.TrimPrefix(parts[5], "key")
}

// A stressCall is one operation; what it saw goes into saw.
type stressCall struct {
	name string
	call func(s stressor) error
}

// changing is a call of which no more is seen than that it was answered.
func changing[In, Out any](name string, call func(*kms.Client, context.Context, *In, ...func(*kms.Options)) (*Out, error), input func(key *string, random *rand.Rand) *In) stressCall {
	return stressCall{name, func(s stressor) error {
		_, err := call(s.c, context.Background(), input(s.pick(), s.random))
		return err
	}}
}

var stressUses = []stressCall{
	{"Encrypt", stressor.encrypt}, {"Encrypt", stressor.encrypt}, {"Decrypt", stressor.decrypt}, {"DescribeKey", stressor.describe},
}

// stressCalls are drawn from evenly; more than one line has what shall be
// called more often.
var stressCalls = []stressCall{
	{"CreateKey", stressor.createKey}, {"Encrypt", stressor.encrypt}, {"Decrypt", stressor.decrypt},
	{"ReplicateKey", stressor.replicate}, {"ReplicateKey", stressor.replicate},
	{"UpdatePrimaryRegion", stressor.updatePrimaryRegion}, {"UpdatePrimaryRegion", stressor.updatePrimaryRegion},
	changing("DisableKey", (*kms.Client).DisableKey, func(key *string, _ *rand.Rand) *kms.DisableKeyInput {
		return &kms.DisableKeyInput{KeyId: key}
	}),
	changing("EnableKey", (*kms.Client).EnableKey, func(key *string, _ *rand.Rand) *kms.EnableKeyInput {
		return &kms.EnableKeyInput{KeyId: key}
	}),
	changing("EnableKey", (*kms.Client).EnableKey, func(key *string, _ *rand.Rand) *kms.EnableKeyInput {
		return &kms.EnableKeyInput{KeyId: key}
	}),
	changing("ScheduleKeyDeletion", (*kms.Client).ScheduleKeyDeletion, func(key *string, _ *rand.Rand) *kms.ScheduleKeyDeletionInput {
		return &kms.ScheduleKeyDeletionInput{KeyId: key, PendingWindowInDays: aws.Int32(7)}
	}),
	changing("CancelKeyDeletion", (*kms.Client).CancelKeyDeletion, func(key *string, _ *rand.Rand) *kms.CancelKeyDeletionInput {
		return &kms.CancelKeyDeletionInput{KeyId: key}
	}),
	changing("CancelKeyDeletion", (*kms.Client).CancelKeyDeletion, func(key *string, _ *rand.Rand) *kms.CancelKeyDeletionInput {
		return &kms.CancelKeyDeletionInput{KeyId: key}
	}),
	changing("CreateAlias", (*kms.Client).CreateAlias, func(key *string, random *rand.Rand) *kms.CreateAliasInput {
		return &kms.CreateAliasInput{AliasName: stressAlias(random), TargetKeyId: key}
	}),
	changing("UpdateAlias", (*kms.Client).UpdateAlias, func(key *string, random *rand.Rand) *kms.UpdateAliasInput {
		return &kms.UpdateAliasInput{AliasName: stressAlias(random), TargetKeyId: key}
	}),
	changing("DeleteAlias", (*kms.Client).DeleteAlias, func(_ *string, random *rand.Rand) *kms.DeleteAliasInput {
		return &kms.DeleteAliasInput{AliasName: stressAlias(random)}
	}),
	changing("UpdateKeyDescription", (*kms.Client).UpdateKeyDescription, func(key *string, random *rand.Rand) *kms.UpdateKeyDescriptionInput {
		return &kms.UpdateKeyDescriptionInput{KeyId: key, Description: aws.String(fmt.Sprint(random.Uint32()))}
	}),
	changing("TagResource", (*kms.Client).TagResource, func(key *string, random *rand.Rand) *kms.TagResourceInput {
		tag := types.Tag{TagKey: aws.String(fmt.Sprint(random.IntN(4))), TagValue: aws.String(fmt.Sprint(random.Uint32()))}
		return &kms.TagResourceInput{KeyId: key, Tags: []types.Tag{tag}}
	}),
	changing("UntagResource", (*kms.Client).UntagResource, func(key *string, random *rand.Rand) *kms.UntagResourceInput {
		return &kms.UntagResourceInput{KeyId: key, TagKeys: []string{fmt.Sprint(random.IntN(4))}}
	}),
	changing("PutKeyPolicy", (*kms.Client).PutKeyPolicy, func(key *string, random *rand.Rand) *kms.PutKeyPolicyInput {
		policy := fmt.Sprintf(`{"Version":"2012-10-17","Id":"%d","Statement":{"Effect":"Allow","Principal":{"AWS":%q},"Action":"kms:*","Resource":"*"}}`, random.Uint32(), account)
		return &kms.PutKeyPolicyInput{KeyId: key, Policy: &policy}
	}),
	changing("RotateKeyOnDemand", (*kms.Client).RotateKeyOnDemand, func(key *string, _ *rand.Rand) *kms.RotateKeyOnDemandInput {
		return &kms.RotateKeyOnDemandInput{KeyId: key}
	}),
	changing("EnableKeyRotation", (*kms.Client).EnableKeyRotation, func(key *string, random *rand.Rand) *kms.EnableKeyRotationInput {
		return &kms.EnableKeyRotationInput{KeyId: key, RotationPeriodInDays: aws.Int32(90 + random.Int32N(3))}
	}),
	changing("CreateGrant", (*kms.Client).CreateGrant, func(key *string, _ *rand.Rand) *kms.CreateGrantInput {
		return &kms.CreateGrantInput{KeyId: key, GranteePrincipal: userARN("app"), Operations: []types.GrantOperation{"Decrypt"}}
	}),
	{"RevokeGrant", stressor.revoke},
}

func (s stressor) createKey() error {
	s.mu.Lock()
	enough := len(s.keys[s.region]) >= stressKeys
	s.mu.Unlock()
	if enough && s.random.IntN(4) > 0 {
		s.saw.operation = "ListKeys"
		_, err := s.c.ListKeys(context.Background(), &kms.ListKeysInput{})
		return err
	}
	out, err := s.c.CreateKey(context.Background(), &kms.CreateKeyInput{MultiRegion: aws.Bool(s.random.IntN(2) == 0)})
	if err == nil {
		s.made(s.region, *out.KeyMetadata.KeyId)
	}
	return err
}

// other is the Region in which related keys are made.
func (s stressor) other() string {
	if s.region == region {
		return otherRegion
	}
	return region
}

func (s stressor) replicate() error {
	out, err := s.c.ReplicateKey(context.Background(), &kms.ReplicateKeyInput{KeyId: s.pick(), ReplicaRegion: aws.String(s.other())})
	if err == nil {
		s.made(s.other(), *out.ReplicaKeyMetadata.KeyId)
	}
	return err
}

func (s stressor) updatePrimaryRegion() error {
	_, err := s.c.UpdatePrimaryRegion(context.Background(), &kms.UpdatePrimaryRegionInput{KeyId: s.pick(), PrimaryRegion: aws.String(s.other())})
	return err
}

func (s stressor) encrypt() error {
	name := s.pick()
	if s.random.IntN(3) == 0 {
		name = stressAlias(s.random)
		s.saw.alias = s.region + "/" + *name
	}
	s.saw.text = fmt.Sprint("sealed ", s.random.Uint64())
	out, err := s.c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: name, Plaintext: []byte(s.saw.text)})
	if err == nil {
		s.saw.key, s.saw.blob = regional(*out.KeyId), out.CiphertextBlob
	}
	return err
}

// decrypt opens what some client has sealed, perhaps in another Region.
func (s stressor) decrypt() error {
	s.mu.Lock()
	var of sight
	for range 50 {
		if len(s.stress.saw) > 0 && of.blob == nil {
			of = s.stress.saw[s.random.IntN(len(s.stress.saw))]
		}
	}
	s.mu.Unlock()
	if of.blob == nil {
		return s.describe()
	}
	out, err := s.c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: of.blob})
	if err == nil {
		s.saw.key = regional(*out.KeyId)
		if string(out.Plaintext) != of.text {
			s.saw.code = "opened to another text"
		}
	}
	return err
}

func (s stressor) describe() error {
	s.saw.operation = "DescribeKey"
	out, err := s.c.DescribeKey(context.Background(), &kms.DescribeKeyInput{KeyId: s.pick()})
	if err == nil {
		m := out.KeyMetadata
		s.saw.key, s.saw.state, s.saw.shown = regional(*m.Arn), string(m.KeyState), aws.ToString(m.Description)
	}
	return err
}

func (s stressor) revoke() error {
	key := s.pick()
	var id string
	err := s.d.pool.QueryRow(context.Background(), "SELECT id FROM grants WHERE key_id = $1 AND region = $2 ORDER BY random() LIMIT 1", *key, s.region).Scan(&id)
	if err != nil { // there is none, or Postgres is away
		return s.describe()
	}
	_, err = s.c.RevokeGrant(context.Background(), &kms.RevokeGrantInput{KeyId: key, GrantId: &id})
	return err
}
