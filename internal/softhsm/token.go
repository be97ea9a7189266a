package softhsm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// InitToken makes a token. A module that this process has initialised already
// does not see it before it is initialised again. The PINs, 4 to 255 bytes,
// are typed to softhsm2-util on a terminal of its own: its arguments could be
// read by everyone on the machine, and it takes PINs from no pipe.
func (f Folder) InitToken(ctx context.Context, label string, soPIN, pin []byte) error {
	util, err := exec.LookPath("softhsm2-util")
	if err != nil {
		return ErrNotInstalled
	}
	for _, pin := range [][]byte{soPIN, pin} {
		// The program would ask again, for ever.
		if len(pin) < 4 || len(pin) > 255 || bytes.ContainsFunc(pin, unicode.IsControl) {
			return fmt.Errorf("initialising SoftHSM token %q: a PIN is 4 to 255 printable bytes", label)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	keyboard, terminal, err := openTerminal()
	if err != nil {
		return err
	}
	defer keyboard.Close()                                                            //nolint:errcheck // nothing of it is kept
	cmd := exec.CommandContext(ctx, util, "--init-token", "--free", "--label", label) // #nosec G204 -- a fixed program, found on PATH
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+f.Conf)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	_ = terminal.Close()
	if err != nil {
		return fmt.Errorf("starting softhsm2-util: %w", err)
	}
	said := typePINs(keyboard, soPIN, soPIN, pin, pin)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("initialising SoftHSM token %q: %w: %s", label, err, said)
	}
	return nil
}

// openTerminal makes a pseudo-terminal.
func openTerminal() (keyboard, terminal *os.File, err error) {
	keyboard, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a terminal for softhsm2-util: %w", err)
	}
	fd := int(keyboard.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		_ = keyboard.Close()
		return nil, nil, fmt.Errorf("opening a terminal for softhsm2-util: %w", err)
	}
	return keyboard, terminal, nil
}

// typePINs answers each prompt with the next PIN, and returns what else the
// program said until it ended. PINs are not echoed.
func typePINs(keyboard io.ReadWriter, pins ...[]byte) string {
	var said []byte
	buffer := make([]byte, 1024)
	for {
		n, err := keyboard.Read(buffer)
		if err != nil {
			// EIO: the program has ended and its side is closed.
			return string(bytes.TrimSpace(said))
		}
		said = append(said, buffer[:n]...)
		if len(pins) == 0 || !bytes.HasSuffix(said, []byte(": ")) {
			continue
		}
		line := append(bytes.Clone(pins[0]), '\n')
		_, err = keyboard.Write(line)
		clear(line)
		if err != nil {
			return string(bytes.TrimSpace(said))
		}
		said, pins = said[:0], pins[1:]
	}
}
