package hsm

import "strings"

// Vendor is what is known of a family of devices before any is tried. Nothing
// but words, and the order in which sources of IVs are tried, depends on it:
// what a device can do is probed. docs/hsm-vendors.md says more.
type Vendor struct {
	Family string `json:"family"`
	Notes  []Note `json:"notes,omitempty"`
	ownIVs bool   // the vendor says that AES-GCM takes nobody else's
}

// Note is a known difference of a family, and who says so.
type Note struct {
	Text   string `json:"text"`
	Source string `json:"source"`
}

// vendors are told apart by the manufacturer's name in the token's
// information (PKCS#11 §3.4, CK_TOKEN_INFO).
var vendors = []struct {
	manufacturer string // part of it, in lower case
	vendor       Vendor
}{
	{"softhsm", Vendor{Family: "SoftHSM", Notes: []Note{
		{"Keys lie in files of this host: whoever reads them and knows the PIN has the keys. For tests and CI, not for production.", "SoftHSM 2 README"},
		{"RSA-OAEP takes SHA-1 only; import by the SHA-256 algorithms is refused.", "measured, 2.6.1"},
		{"Each unwrapped and destroyed key leaks about 243 bytes until C_Finalize.", "measured, 2.6.1"},
	}}},
	{"safenet", luna}, {"thales", luna}, {"gemalto", luna},
	{"ncipher", nShield}, {"entrust", nShield},
	{"cavium", cloudHSM}, {"marvell", cloudHSM}, {"aws", cloudHSM},
	{"mozilla", Vendor{Family: "NSS softokn", Notes: []Note{
		{"It ignores unwrap templates and wraps keys that are not EXTRACTABLE: Trent cannot run on it.", "measured, 3.87"},
	}}},
	{"utimaco", Vendor{Family: "Utimaco", Notes: []Note{
		{"Nothing is known beyond what was probed.", "no documentation at hand"},
	}}},
	{"yubico", Vendor{Family: "YubiHSM 2", Notes: []Note{
		{"It has no AES-GCM and cannot unwrap into session objects: Trent cannot run on it.", "yubihsm_pkcs11 documentation, supported mechanisms"},
	}}},
}

var luna = Vendor{Family: "Luna", Notes: []Note{
	{"In FIPS mode AES-GCM makes its own 16-byte IV and appends it to the output.", "Thales Luna HSM documentation, CKM_AES_GCM"},
	{"AES key wrap has the vendor's own numbers: CKM_AES_KWP for private keys, CKM_AES_KW for secret ones.", "Thales Luna HSM documentation, mechanism summary"},
	{"Before firmware 7.9.3 C_UnwrapKey wants CKA_VALUE_LEN in the template.", "Thales Luna HSM documentation, CKM_AES_KW"},
}}

var nShield = Vendor{Family: "nShield", Notes: []Note{
	{"Load sharing over modules is switched on by the variable CKNFAST_LOADSHARING.", "nShield PKCS#11 library environment variables"},
	{"Private objects cannot live on the accelerator slot: name a token.", "nShield Cryptographic API Guide"},
}}

var cloudHSM = Vendor{Family: "AWS CloudHSM", ownIVs: true, Notes: []Note{
	{"AES-GCM makes its own IV and wants zeros in the parameters.", "AWS CloudHSM user guide, PKCS#11 mechanisms, note 4"},
	{"SDK 5 has AES key wrap under the vendor's own numbers only.", "AWS CloudHSM user guide, AES key wrapping"},
	{"Session objects live on one member of the cluster only.", "AWS CloudHSM user guide, known issues"},
	{"SDK 5 has no read-only sessions, and reports its session limit as CKR_ARGUMENTS_BAD.", "AWS CloudHSM user guide, known issues"},
	{"There are no data objects: Trent's mark of an active deployment is kept in the database only.", "AWS CloudHSM user guide, supported object types"},
}}

// vendorOf never returns nil: a device of no known family is generic.
func vendorOf(info Info) *Vendor {
	manufacturer := strings.ToLower(info.Manufacturer)
	for _, known := range vendors {
		if strings.Contains(manufacturer, known.manufacturer) {
			return &known.vendor
		}
	}
	return &Vendor{Family: "generic"}
}
