//! Accesses that kill: made in a process of their own, this very test program run again.

use nix::libc;
use revocable_mmio::Strategy;
use revocable_mmio::pci::{Bar, PciDevice, Space};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

const VARIABLE: &str = "REVOCABLE_VFIO_CHILD";

/// Runs a child whose disposition of SIGBUS is `how`, and says how it ended.
pub(crate) fn run(how: &str, strategy: Strategy) -> String {
    let own = std::env::current_exe().expect("this program");
    let mut child = Command::new(own);
    child.env(VARIABLE, format!("{how}/{strategy}")).args(["--exact", "child_of_the_suite", "--nocapture"]);
    let status = child.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("a child");
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exited with {status}"),
    }
}

/// What the child does; the parent's test of this name does nothing.
pub(crate) fn main() {
    let Ok(what) = std::env::var(VARIABLE) else { return };
    let (how, strategy) = what.split_once('/').expect("how and what");
    let all = [Strategy::Zap, Strategy::Detach, Strategy::Replace];
    let strategy = all.into_iter().find(|s| s.to_string() == strategy).expect("a strategy");
    let device = PciDevice::builder(1, 1).command(2).bar(0, Bar::memory(4096)).strategy(strategy).build();
    let device = device.expect("a device");
    let mapping = device.map(Space::Bar(0), revocable_mmio::MapOptions::new()).expect("a mapping");
    device.write(Space::Config, 4, &[0u8, 0][..]).expect("off");
    // SAFETY: dispositions of a process of our own, and one load, which ends it. No core is wanted of that.
    unsafe {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        if how == "ignored" {
            libc::signal(libc::SIGBUS, libc::SIG_IGN);
        }
        if how.contains("handler") {
            crate::signals::install();
        }
        if how.contains("blocked") {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, libc::SIGBUS);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        }
        std::hint::black_box(mapping.as_ptr().read_volatile());
    }
}
