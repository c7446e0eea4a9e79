//! Ranges that their owners have given up and the kernel has not taken back yet.

use super::cover;
use crate::sync::inside::Mutex;
use crate::sys::identity::PerProcess;
use crate::sys::{AddrRange, map};

/// Ranges that could not be unmapped, waiting for another try.
static LEFT_OVER: PerProcess<Mutex<Vec<AddrRange>>> = PerProcess::new(|| Mutex::new(Vec::new()));

/// Unmaps a range that its owner gives up. If the kernel refuses (ENOMEM: the range has become part of a larger mapping,
/// and splitting that would exceed vm.max_map_count), the range is made to reach nothing, and unmapped later.
pub(super) fn release(range: AddrRange) {
    if !release_or_shut(range) {
        LEFT_OVER.get().lock_quietly().push(range);
    }
}

/// Unmaps a range that its owner gives up. False if the kernel refuses: what stays there reaches nothing.
#[expect(unsafe_code, reason = "UNSAFETY: unmaps a range that its owner gives up")]
pub(super) fn release_or_shut(range: AddrRange) -> bool {
    // SAFETY: the callers own the range and use it no more.
    let released = unsafe { map::unmap(range) }.is_ok();
    if !released {
        cover::shut_left_over(range);
    }
    released
}

/// Unmaps the ranges that could not be unmapped before, except what is in a live range, as `live` finds one that overlaps:
/// foreign code has unmapped it there, and the kernel has given the address out again.
#[expect(unsafe_code, reason = "UNSAFETY: unmaps ranges that their owners gave up")]
pub(super) fn sweep(mut live: impl FnMut(AddrRange) -> Option<AddrRange>) {
    let mut left_over = LEFT_OVER.get().lock_quietly();
    let mut given_up = std::mem::take(&mut *left_over);
    while let Some(range) = given_up.pop() {
        if let Some(live) = live(range) {
            let taken = live.common(range).unwrap_or(range);
            given_up.extend(range.around(taken));
            continue;
        }
        // SAFETY: as in `release`: it is in no view's range, and a mapping of the crate's is still the one given up.
        if unsafe { map::unmap(range) }.is_err() {
            left_over.push(range);
        }
    }
}
