package api

import (
	"errors"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/trent-kms/trent/awsjson"
)

// TestOperationTable demands that the table lists each operation of the
// service model once, in order, and nothing else.
func TestOperationTable(t *testing.T) {
	var have, want []string
	for _, op := range operations {
		have = append(have, op.name)
	}
	for _, model := range awsjson.Operations() {
		want = append(want, model.Name)
	}
	if len(want) != 56 || !slices.Equal(have, want) {
		t.Errorf("operation table:\n%v\nwant\n%v", have, want)
	}
}

func TestErrorBody(t *testing.T) {
	text := "quotes \" and \xff bytes"
	for _, test := range []struct {
		err  smithy.APIError
		want string
	}{
		{&types.InvalidCiphertextException{}, `{"__type":"InvalidCiphertextException"}`},
		{&types.NotFoundException{Message: &text}, `{"__type":"NotFoundException","message":"quotes \" and � bytes"}`},
		{&smithy.GenericAPIError{Code: "AccessDeniedException", Message: "no"}, `{"__type":"AccessDeniedException","Message":"no"}`},
	} {
		if got := string(errorBody(test.err)); got != test.want {
			t.Errorf("errorBody = %s, want %s", got, test.want)
		}
		var api smithy.APIError
		if !errors.As(error(test.err), &api) {
			t.Errorf("%T is no API error", test.err)
		}
	}
}
