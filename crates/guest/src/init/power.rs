//! The end of the machine.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use rustix::system::RebootCommand;

use super::disk;
use crate::process::session;

/// How long processes may take to end by themselves, and again to end by force.
const GRACE: Duration = Duration::from_secs(2);

/// A line on the console, where the host's log catches it.
pub(super) fn say(line: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        // There is no other place to complain to.
        let _ = writeln!(console, "wrenn-init: {line}");
    }
}

/// Says why and restarts the machine, which makes the VMM exit.
pub(super) fn fail(reason: &str) -> ! {
    say(reason);
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // A kernel that does not restart panics when its first process ends, which ends the VM as well.
    panic!("{reason}");
}

/// Ends every process, writes everything back, and switches off.
pub(super) fn off() -> ! {
    session::terminate_all(GRACE);
    disk::settle();
    // A VM's power switch may be missing, whereas its reset is not; either makes the VMM exit.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    fail("the machine does not switch off")
}
