//! Ranges that their owners have given up and the kernel has not taken back yet.

use super::cover;
use crate::sync::inside::Mutex;
use crate::sys::identity::PerProcess;
use crate::sys::{AddrRange, map};

/// Ranges that could not be unmapped, waiting for another try.
static LEFT_OVER: PerProcess<Mutex<Vec<AddrRange>>> = PerProcess::new(|| Mutex::new(Vec::new()));

/// Unmaps a range that its owner gives up. If the kernel refuses (ENOMEM: the range has become part of a larger mapping,
/// and splitting that would exceed vm.max_map_count), the range is made to reach nothing, and unmapped later.
#[expect(unsafe_code, reason = "UNSAFETY: unmaps a range that its owner gives up")]
pub(super) fn release(range: AddrRange) {
    // SAFETY: the callers own the range and use it no more.
    if unsafe { map::unmap(range) }.is_err() {
        cover::shut_left_over(range);
        LEFT_OVER.get().lock_quietly().push(range);
    }
}

/// Unmaps the ranges that could not be unmapped before.
#[expect(unsafe_code, reason = "UNSAFETY: unmaps ranges that their owners gave up")]
pub(super) fn sweep() {
    // SAFETY: as in `release`; a range that is still mapped still belongs to the crate.
    LEFT_OVER.get().lock_quietly().retain(|range| unsafe { map::unmap(*range) }.is_err());
}
