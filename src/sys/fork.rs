//! Noticing that this is a forked child: what it has inherited belongs to its parent.
//!
//! A userfaultfd serves the address space that it was made in, so a child that revoked with an inherited one would change its
//! parent's mappings; and the ranges of inherited mappings, which no child gets (`MADV_DONTFORK`), are free there, so that
//! replacing or unmapping them would hit whatever the child has put there since. A page that the kernel wipes on fork tells
//! (`MADV_WIPEONFORK`, Linux 4.14; a thread or a vfork child, sharing the memory, is no child in this sense).
//!
//! UNSAFETY: a page of its own that is never unmapped.
#![expect(unsafe_code, reason = "maps a page and shares it with the kernel")]

use nix::libc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which process, of a line of forks, this is: different in a child from what it was in its parent. 0 where the kernel
/// can't tell.
pub(crate) fn generation() -> u64 {
    static PAGE: OnceLock<Option<&'static AtomicU64>> = OnceLock::new();
    static LAST: AtomicU64 = AtomicU64::new(0);
    let Some(generation) = PAGE.get_or_init(page) else { return 0 };
    match generation.load(Ordering::Relaxed) {
        0 => {
            let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            // Two threads may find it wiped at once: the first one's number stands.
            match generation.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => next,
                Err(other) => other,
            }
        }
        known => known,
    }
}

fn page() -> Option<&'static AtomicU64> {
    let len = super::page_size();
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: without MAP_FIXED the kernel picks an address where nothing of anyone's stands.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the page just mapped.
    if unsafe { libc::madvise(at, len, libc::MADV_WIPEONFORK) } != 0 {
        // SAFETY: as above, known to nobody else.
        unsafe { libc::munmap(at, len) };
        return None;
    }
    // SAFETY: zeroed, aligned to a page, mapped for good, accessed atomically only; the kernel writes it at a fork only,
    // in the child, before that runs.
    Some(unsafe { &*at.cast::<AtomicU64>() })
}
