//! A memory cgroup's limit, met by faults, pins, mappings and revocations.

use super::cgroup::Group;
use super::{Out, PAGE, addr, in_group, stamp};
use crate::support::matrix::{Case, Memory, STRATEGIES};
use crate::support::raw::{self, Hit};
use crate::support::{self, eventually};
use nix::errno::Errno;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{AccessError, MapError, MapOptions, Mapping, OnDisabled, PinError, Region, RevokeError, Strategy};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PAGES: usize = 2048;
/// Written before the limit is there.
const EARLY: usize = 64;
const ROOM: u64 = 2 << 20;

/// A fault waits in the kernel, a pin gets an error, and the region can be revoked and given back meanwhile.
#[test]
#[cfg_attr(
    revocable_portable,
    ignore = "an access that waits for memory under the memory lock keeps revocation waiting"
)]
fn at_a_groups_limit_accesses_wait_pins_are_refused_and_revocation_goes_on() {
    support::start();
    in_group(Out::Nowhere, |group| {
        let (mut refused, mut changes) = (0, 0);
        // More than once, should this thread itself have had to wait for memory all the time.
        for _ in 0..5 {
            // Withdraw has all of its memory from the start, and never waits for any.
            for strategy in STRATEGIES.into_iter().filter(|strategy| *strategy != Strategy::Withdraw) {
                for policy in [OnDisabled::Sigbus, OnDisabled::Block] {
                    let case = Case { strategy, policy, memory: Memory::Memfd };
                    if case.is_legal() {
                        let (pins, revocations) = at_the_limit(&case, group);
                        refused += pins;
                        changes += revocations;
                    }
                }
            }
            if refused > 0 && changes > 0 {
                return;
            }
        }
        panic!("{refused} pins refused, {changes} revocations at the limit: nothing was tried");
    });
}

/// How many pins were refused, and how often the region was revoked, while a thread waited for memory.
fn at_the_limit(case: &Case, group: &Group) -> (usize, usize) {
    let (region, spare) = (case.region(PAGES), case.region(PAGES));
    let mapping = case.map(&region);
    let write = |page: usize| match mapping.write(page * PAGE, stamp(page)) {
        Ok(()) => true,
        Err(AccessError::Disabled { .. }) => false,
        Err(e) => panic!("{case} page {page}: {e}"),
    };
    assert!((0..EARLY).all(write));
    // Once without a limit, so that what this takes in this process is there.
    change(case, &region, &mapping);
    drop(case.map(&spare));
    drop(spare.pin(0..PAGE, FaultFlags::WRITE).expect("there is memory"));
    let written = AtomicUsize::new(EARLY);
    let (mut refused, mut changes) = (0, 0);
    let ready = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            // A fault of this thread's before there is a limit: at the limit the kernel finds no memory for a signal stack that was
            // never used, and ends the process.
            raw::load64(8).expect_err("nothing is mapped there");
            ready.wait();
            ready.wait();
            for page in EARLY..PAGES {
                while !write(page) {
                    thread::yield_now();
                }
                written.store(page + 1, Ordering::Relaxed);
            }
        });
        ready.wait();
        group.limit_to(ROOM);
        ready.wait();
        eventually("a fault waits for memory", || group.is_at_the_limit());
        assert!(written.load(Ordering::Relaxed) < PAGES, "{case}: the limit was none");
        refused += usize::from(ask_for_more(case, group, &spare));
        while group.is_at_the_limit() {
            changes += usize::from(change(case, &region, &mapping) && group.is_at_the_limit());
        }
    });
    group.no_limit();
    for page in 0..PAGES {
        assert_eq!(region.owner().read::<u64>(page * PAGE), Ok(stamp(page)), "{case} page {page}");
        assert_eq!(raw::load64(addr(&mapping) + page * PAGE), Ok(stamp(page)), "{case} page {page}");
    }
    // The pages whose fault was left to the kernel are the region's like any other.
    assert!(change(case, &region, &mapping), "{case}: there is memory again");
    assert_eq!(mapping.read::<u64>((PAGES - 1) * PAGE), Ok(stamp(PAGES - 1)), "{case}");
    (refused, changes)
}

/// What asks for memory in a system call gets an error; true if it did.
fn ask_for_more(case: &Case, group: &Group, spare: &Region) -> bool {
    let refused = match spare.pin(0..spare.len(), FaultFlags::WRITE) {
        Ok(_) => {
            assert!(!group.is_at_the_limit(), "{case}: pinned beyond the limit");
            false
        }
        Err(PinError::NoMemory(e)) => e.errno == Errno::ENOMEM,
        Err(e) => panic!("{case}: {e}"),
    };
    assert_eq!(spare.stats().pins, 0, "{case}");
    match spare.map(MapOptions::new()) {
        Ok(_) => {}
        Err(MapError::Sys { source, .. }) => assert_eq!(source.errno, Errno::ENOMEM, "{case}: {source}"),
        Err(e) => panic!("{case}: {e}"),
    }
    assert_eq!(spare.stats().mappings, 0, "{case}");
    refused
}

/// Revokes and gives back; false if the kernel had no memory for that, and then nothing has changed.
fn change(case: &Case, region: &Region, mapping: &Mapping) -> bool {
    let base = addr(mapping);
    let pages = [0, EARLY / 2, EARLY - 1];
    let degraded = region.stats().degraded;
    match region.disable() {
        Ok(changed) => assert!(changed, "{case}"),
        Err(RevokeError::Sys { source, .. } | RevokeError::Window { source }) => {
            assert_eq!(source.errno, Errno::ENOMEM, "{case}: {source}");
            assert!(region.is_enabled(), "{case}: an error, and the state as before");
            assert!(pages.iter().all(|page| mapping.read(page * PAGE) == Ok(stamp(*page))), "{case}: {source}");
            return false;
        }
        Err(e) => panic!("{case}: {e}"),
    }
    for page in pages {
        let at = base + page * PAGE;
        match case.policy {
            // For want of memory the range may refuse in a blunter way, and says so.
            OnDisabled::Sigbus if region.stats().degraded > degraded => {
                raw::load64(at).expect_err("G1 is broken");
            }
            OnDisabled::Sigbus => assert_eq!(raw::load64(at), Err(Hit::bus(at)), "{case}: G1 is broken"),
            _ => assert!(mapping.try_read::<u64>(page * PAGE).is_err(), "{case}: G1 is broken"),
        }
    }
    let since = Instant::now();
    loop {
        match region.enable() {
            Ok(changed) => return changed,
            Err(RevokeError::Sys { source, .. } | RevokeError::Window { source }) if source.errno == Errno::ENOMEM => {
                assert!(
                    !region.is_enabled() && since.elapsed() < crate::support::patience(Duration::from_secs(10)),
                    "{case}: {source}"
                );
                thread::yield_now();
            }
            Err(e) => panic!("{case}: {e}\n{}", around(base)),
        }
    }
}

/// What is mapped near an address, for the message of a failure.
fn around(base: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let start = |line: &&str| usize::from_str_radix(line.split('-').next().unwrap_or_default(), 16).unwrap_or(0);
    maps.lines().filter(|line| start(line).abs_diff(base) < (64 << 20)).collect::<Vec<_>>().join("\n")
}
