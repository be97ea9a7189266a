// Package failpoint names every durable step of the service. In a test build
// (-tags failpoint) a process that is told a point's name kills itself there
// with SIGKILL, so that tests can prove what a crash between any two steps
// leaves behind. In a normal build Hit compiles to nothing.
package failpoint

// Points lists the durable steps, in the order in which a fresh deployment
// meets them. The crash tests walk this list; a point that is hit but not
// listed fails them.
var Points = []string{
	// trent init
	"init.deployment",        // deployment row committed, no token object yet
	"init.domainkey.aes",     // token object made
	"init.domainkey.generic", // token object made
	"init.domainkey.private", // token object made
	"init.mackey",            // token object made
	"init.domain",            // the token holds the whole domain
	"init.administrator",     // administrator committed, deployment not active
	"init.shown",             // secret shown, deployment not active
	"init.active",            // deployment active, not marked on the token
	"init.marked",            // marked there

	// CreateKey
	"hbk.generated",    // session object made in the HSM
	"hbk.wrapped",      // EKT made, session object destroyed
	"createkey.sealed", // rows sealed, nothing written

	// the first use of a key, and of each block of encryptions
	"budget.reserved", // block committed, none of it used

	// rotation of a key, on demand or automatic
	"rotation.sealed", // rows sealed, nothing written

	// a further generation of the domain keys, and the end of one
	"generation.domainkey.aes",     // token object made
	"generation.domainkey.generic", // token object made
	"generation.domainkey.private", // token object made
	"generation.mackey",            // token object made
	"generation.made",              // the token holds it, no row names it yet
	"generation.recorded",          // row committed
	"generation.activated",         // row committed: hosts follow
	"generation.retiring",          // row committed, nothing destroyed
	"generation.destroyed.domain-key-aes",
	"generation.destroyed.domain-key-generic",
	"generation.destroyed.domain-key-private",
	"generation.destroyed.mac",
	"generation.emptied", // a member holds nothing of it any more; not in its row yet

	// what follows upon a new generation
	"reseal.row", // a row's new MAC committed

	// enrolment of a further member
	"enrol.key",                 // an enrolment key is there, in its member's worker
	"enrol.recorded",            // row of a generation without keys committed
	"enrol.made",                // keys made and wrapped; on no token yet
	"enrol.took.domain-key-aes", // token object of a member made, in its worker
	"enrol.took.domain-key-generic",
	"enrol.took.domain-key-private",
	"enrol.took.mac",
	"enrol.taken",     // one member holds the generation
	"enrol.proved",    // all do, no row says so
	"enrol.enrolled",  // rows committed
	"enrol.dropped",   // an enrolment key destroyed
	"enrol.accesskey", // row of another access key committed, its secret not shown
	"enrol.removed",   // row of a removed member committed, its keys still there
	"enrol.destroyed", // a generation of the removed member destroyed

	// every change
	"change.before_commit",
	"change.after_commit",

	// every call without a change
	"audit.before_commit",
	"audit.after_commit",
}
