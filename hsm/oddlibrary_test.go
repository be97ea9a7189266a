package hsm

import (
	"errors"
	"strings"
	"testing"

	"github.com/trent-kms/trent/internal/shim"
)

// oddLibrary stands before SoftHSM. With ONE_SESSION its token allows one, and
// with LACKS it gives no address for the function of that number, for which
// the standard wants one that answers CKR_FUNCTION_NOT_SUPPORTED.
const oddLibrary = `
#include "shim.h"

#ifdef ONE_SESSION
enum { MAX_RW_SESSION_COUNT = 15 }; // in words of CK_TOKEN_INFO

static ulong_t get_token_info(ulong_t slot, ulong_t *info)
{
	ulong_t code = ((ulong_t (*)(ulong_t, ulong_t *))real.fn[GetTokenInfo])(slot, info);
	info[MAX_RW_SESSION_COUNT] = 1;
	return code;
}
#endif

ulong_t C_GetFunctionList(ck_functions **list)
{
	ulong_t code = stand_before(MODULE, list);
#ifdef ONE_SESSION
	shown.fn[GetTokenInfo] = (void *)get_token_info;
#endif
#ifdef LACKS
	shown.fn[LACKS] = NULL;
#endif
	return code;
}
`

// TestOddLibraries: what a library or token has too little of is told, and does
// not end the process.
func TestOddLibraries(t *testing.T) {
	for flag, test := range map[string]struct {
		want error
		says string
	}{
		"-DONE_SESSION":     {ErrUnavailable, "one session"},
		"-DLACKS=Sign":      {ErrModule, "C_Sign"},
		"-DLACKS=UnwrapKey": {ErrModule, "C_UnwrapKey"},
	} {
		t.Run(flag, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.Module = shim.BuildOnCopy(t, cfg.Module, []byte(oddLibrary), flag)
			token, err := Open(t.Context(), cfg)
			if err == nil {
				token.Close() //nolint:errcheck // the test has failed
			}
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, want %v that names %s", err, test.want, test.says)
			}
		})
	}
}
