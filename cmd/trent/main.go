// Command trent is an AWS-KMS-compatible service whose keys live in a PKCS#11
// HSM. main only wires: settings are in settings.go, how the parts are opened
// is in wire.go, and how they are served in listen.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/trent-kms/trent/hsm"
)

// cli is the command line.
type cli struct {
	Config string `env:"TRENT_CONFIG" placeholder:"FILE" type:"path" help:"Configuration file (TOML): each setting under its flag's name. The default is ${configFile} if that exists, and none for dev."`

	Serve    serveCmd        `cmd:"" help:"Serve the API to AWS clients."`
	Dev      devCmd          `cmd:"" help:"Run everything on this machine for development: a SoftHSM token, a private Postgres and the service."`
	Init     initCmd         `cmd:"" help:"Set up an empty token and an empty database, and make the first administrator."`
	Domain   domainCmd       `cmd:"" help:"Rotate and look after the domain keys, under which all keys are wrapped, and the HSMs that hold them."`
	Ceremony ceremonyCmd     `cmd:"" help:"Lead through set-up, adding a member, backup and recovery, with a transcript for auditors."`
	Doctor   doctorCmd       `cmd:"" help:"Say what token and database were found, and what is missing."`
	Token    softhsmTokenCmd `cmd:"" name:"softhsm-token" hidden:"" help:"Make a SoftHSM token."`
	Version  versionCmd      `cmd:"" help:"Print the version."`
}

const description = `Trent answers the AWS KMS API with keys that live in a PKCS#11 HSM.

Every setting is a flag, an environment variable (in brackets below) or a line in the configuration file; the first of these that is set counts. Secrets are neither flags nor lines in that file: the PIN is read from --pin-file, TRENT_PIN or the systemd credential "pin", the database URL from --database-url-file, TRENT_DATABASE_URL or the credential "database-url".

Example:

    trent dev`

// Exit codes: 1 is a fault that the message explains and that may pass, 2 a
// wrong command line or setting, 3 a PIN that the token does not take. A
// supervisor must not start it again after 2 and 3: tries lock the token.
const (
	exitFault = 1
	exitUsage = 2
	exitPIN   = 3
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if slices.Equal(args, []string{"hsm-worker"}) { // not in the help: serve starts it
		return serveWorker()
	}
	var c cli
	parser, err := kong.New(&c,
		kong.Name("trent"),
		kong.Description(description),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Vars{"configFile": defaultConfigFile, "hostname": hostname()},
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, "trent:", err)
		return exitFault
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "trent: %v\nSee %s --help.\n", err, meant(err))
		return exitUsage
	}
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // by nohup
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	// The first signal asks for an orderly end, a second one ends at once.
	context.AfterFunc(ctx, stop)
	command.BindTo(ctx, (*context.Context)(nil))
	if err := command.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "trent: %v\n", err)
		switch {
		case errors.Is(err, hsm.ErrPINIncorrect), errors.Is(err, hsm.ErrPINLocked):
			return exitPIN
		case errors.Is(err, errNoSecret), errors.Is(err, errUnnamed):
			return exitUsage
		}
		return exitFault
	}
	return 0
}

// meant is the command whose line the parser has refused, as far as it was
// recognised.
func meant(err error) string {
	var refused *kong.ParseError
	if errors.As(err, &refused) {
		if command := refused.Context.Selected(); command != nil {
			return command.FullPath()
		}
	}
	return "trent"
}

// hostname is this machine's name, the default for --host.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}
