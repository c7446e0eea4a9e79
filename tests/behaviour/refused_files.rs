//! A file that refuses to be mapped: the caller gets the error, and no other thread loses memory.
#![expect(unsafe_code, reason = "UNSAFETY: maps private memory, as other threads of a process do")]

use crate::support;
use crate::support::matrix::HugePages;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use revocable_mmio::{Backing, MapOptions, OnRevoke, Region};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

/// More huge pages than there are: mmap(2) refuses after the kernel has unmapped what was at the address (`mmap_region`).
const LEN: usize = 1 << 40;

/// Maps private memory of the same length, looks whether it keeps a value, and gives it back.
fn use_memory(round: u64) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel picks an address where nothing is mapped.
    let at = unsafe { libc::mmap(null_mut(), LEN, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "address space");
    let word = at.cast::<u64>();
    // SAFETY: the mapping just made, which no other thread knows.
    unsafe { word.write_volatile(round) };
    thread::yield_now();
    // SAFETY: as above.
    let kept = unsafe { word.read_volatile() };
    assert_eq!(kept, round, "another thread's memory was replaced");
    // SAFETY: as above, used no more.
    let rc = unsafe { libc::munmap(at, LEN) };
    assert_eq!(rc, 0, "munmap");
}

#[test]
fn a_file_that_refuses_to_be_mapped_costs_no_other_thread_its_memory() {
    support::start();
    let one = HugePages::take(1);
    require!(one.is_some(), "no huge page of 2 MiB can be had", could: false);
    let huge = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let fd = memfd_create(c"refuses", huge).expect("the kernel has such pages");
    nix::unistd::ftruncate(&fd, i64::try_from(LEN).expect("it fits")).expect("it takes none");
    let backing = Backing::File { fd, offset: 0, device: Some(OnRevoke::Drop) };
    let region = Region::builder(LEN).backing(backing).build().expect("nothing is mapped yet");
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = support::AtTheEnd(&end);
        for first in [1, 1 << 32] {
            let end = &end;
            scope.spawn(move || (first..).take_while(|_| !end.load(Ordering::Relaxed)).for_each(use_memory));
        }
        let since = Instant::now();
        while since.elapsed() < support::stress_time(500) {
            let refused = region.map(MapOptions::new()).expect_err("there are fewer huge pages").to_string();
            assert!(refused.contains("ENOMEM"), "{refused}");
        }
    });
}
