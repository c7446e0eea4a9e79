//! A load of revoked memory under each disposition of SIGBUS, which ends its process: this very test, run again.

use crate::devices::{BAR0, COMMAND, MEMORY, map};
use crate::support::{child, raw};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use revocable_mmio::Strategy;
use revocable_mmio::pci::{Bar, PciDevice, Space};
use std::os::unix::process::ExitStatusExt;

const VARIABLE: &str = "REVOCABLE_VFIO_DISPOSITION";

/// Runs the calling test again, to do [`load_if_asked`] under a disposition. Returns how it ended.
pub(crate) fn run(how: &str) -> String {
    let status = child::again_with(&[(VARIABLE, how)]).status;
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exited with {status}"),
    }
}

/// In a child of [`run`]: sets the disposition, and loads. True if the load returned, false in any other process.
pub(crate) fn load_if_asked(strategy: Strategy) -> bool {
    let Ok(how) = std::env::var(VARIABLE) else { return false };
    let device = PciDevice::builder(1, 1).command(MEMORY).bar(0, Bar::memory(4096)).strategy(strategy).build();
    let device = device.expect("a device");
    let mapping = map(&device, BAR0);
    device.write(Space::Config, COMMAND, &[0u8, 0][..]).expect("off");
    // No core is wanted of it.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).expect("less is always allowed");
    if how == "ignored" {
        let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: the disposition is no handler.
        unsafe { sigaction(Signal::SIGBUS, &ignored) }.expect("it can be ignored");
    }
    if how.contains("handler") {
        raw::catch_signals();
    }
    if how.contains("blocked") {
        SigSet::from(Signal::SIGBUS).thread_block().expect("it can be blocked");
    }
    // SAFETY: the mapping lives; its memory is revoked, and the load's signal ends the process.
    std::hint::black_box(unsafe { mapping.as_ptr().read_volatile() });
    true
}
