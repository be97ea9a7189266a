package kms

import (
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/trent-kms/trent/attestation"
)

func TestAdditional(t *testing.T) {
	material := stringMember("keyMaterialId", "m")
	document := &attestation.Document{ModuleID: "i-\"1\"\xff", PCRs: map[int][]byte{0: {0xab}, 3: {1}, 5: {2}}}
	tpm := &attestation.Document{ModuleID: "i", NitroTPM: true, PCRs: map[int][]byte{0: {1}, 23: {0xcd}}}
	shown := `"recipient":{"attestationDocumentModuleId":"i-\"1\"` + "\ufffd" + `","attestationDocumentEnclaveImageDigest":"ab","attestationDocumentEnclavePCR3":"01"}`
	for _, c := range []struct {
		extra    jsontext.Value
		document *attestation.Document
		want     string
	}{
		{nil, nil, ""},
		{material, nil, `{"keyMaterialId":"m"}`},
		{nil, document, `{` + shown + `}`},
		{jsontext.Value(`{}`), document, `{` + shown + `}`},
		{material, document, `{"keyMaterialId":"m",` + shown + `}`},
		{nil, tpm, `{"recipient":{"attestationDocumentModuleId":"i","attestationDocumentNitroTPMPCR23":"cd"}}`},
	} {
		call := &Call{extra: c.extra, recipient: recipient{document: c.document}}
		if got := call.additional(); string(got) != c.want || c.want != "" && !got.IsValid() {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
	if string(material) != `{"keyMaterialId":"m"}` {
		t.Errorf("the material's member was written to: %s", material)
	}
}
