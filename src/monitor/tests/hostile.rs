//! Messages that no kernel would send, and a monitor to hand them to.

use crate::monitor::Monitor;
use crate::sys::uffd::{FaultMessage, message};
use crate::sys::{Addr, AddrRange};
use proptest::prelude::*;

/// A monitor with this many threads; without a userfaultfd prints that, and returns `None`.
pub(crate) fn monitor(threads: usize) -> Option<Monitor> {
    let monitor = if threads == 0 { Monitor::manual() } else { Monitor::with_threads(threads) };
    if monitor.is_err() {
        println!("SKIP: no userfaultfd");
        assert!(std::env::var_os("REVOCABLE_CI").is_none_or(|value| value != "1"), "this machine is to run every test");
    }
    monitor.ok()
}

/// Makes the monitor resolve a fault as if its userfaultfd had reported it.
pub(crate) fn answer(monitor: &Monitor, fault: FaultMessage) {
    monitor.core.answer(fault);
}

/// Where a message points to, seen from some mappings.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// This far from the start of one of them.
    Start(usize, isize),
    /// This far from its end.
    End(usize, isize),
    Anywhere(u64),
}

impl Target {
    fn address(self, ranges: &[AddrRange]) -> u64 {
        let near = |at: Addr, by: isize| at.0.wrapping_add_signed(by) as u64;
        match self {
            Target::Start(which, by) => near(ranges[which % ranges.len()].start, by),
            Target::End(which, by) => near(ranges[which % ranges.len()].end(), by),
            Target::Anywhere(address) => address,
        }
    }
}

fn target() -> impl Strategy<Value = Target> {
    let by = prop_oneof![-1isize..2, -9000isize..9000];
    prop_oneof![
        (0usize..4, by.clone()).prop_map(|(which, by)| Target::Start(which, by)),
        (0usize..4, by).prop_map(|(which, by)| Target::End(which, by)),
        any::<u64>().prop_map(Target::Anywhere),
    ]
}

/// A message: where it points to, its bytes, and whether it is made a fault, with any flags, of one of a few threads.
pub(crate) fn hostile() -> impl Strategy<Value = (Target, [u8; message::SIZE], bool)> {
    (target(), message::tests::any_message(), any::<bool>())
}

/// The fault in a generated message, if there is one.
pub(crate) fn decoded(
    (target, bytes, is_fault): &(Target, [u8; message::SIZE], bool),
    ranges: &[AddrRange],
) -> Option<FaultMessage> {
    let at = target.address(ranges);
    let fault = message::tests::fault(u64::from(bytes[8]), at, u32::from(bytes[24] % 4));
    // An event has its addresses elsewhere, and must be ignored wherever they point to.
    let mut event = *bytes;
    event[8..16].copy_from_slice(&at.to_ne_bytes());
    event[16..24].copy_from_slice(&at.to_ne_bytes());
    message::faults(if *is_fault { &fault } else { &event }).next()
}
