//! Pages that the kernel takes back from an enabled or a disabled region.

use super::cgroup::Group;
use super::swap::pages_out;
use super::{Out, PAGE, addr, in_group, stamp};
use crate::support;
use crate::support::AtTheEnd;
use crate::support::count::resident;
use crate::support::matrix::{Case, Memory, POLICIES, STRATEGIES};
use crate::support::raw::{self, Hit};
use revocable_mmio::{AccessError, Mapping, OnDisabled, Region};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

const PAGES: usize = 512;

fn every_swappable_case(test: impl Fn(&Case)) {
    for memory in [Memory::Memfd, Memory::ShmFile] {
        for strategy in STRATEGIES {
            for policy in POLICIES {
                let case = Case { strategy, policy, memory };
                if case.is_legal() {
                    test(&case);
                }
            }
        }
    }
}

/// Has the region's pages swapped out.
fn take_out(group: &Group, region: &Region, when: &str) {
    // What was used lately is spared the first times, and what is on its way to the file still counts as here.
    support::eventually(&format!("pages are swapped out: {when}"), || {
        group.reclaim();
        pages_out(region.owner().as_ptr().expose_provenance(), region.len()) > PAGES / 2
    });
}

fn check_refused(case: &Case, mapping: &Mapping, when: &str) {
    let base = addr(mapping);
    for page in [0, 1, PAGES / 2, PAGES - 1] {
        let at = base + page * PAGE;
        match case.policy {
            OnDisabled::Sigbus => assert_eq!(raw::load64(at), Err(Hit::bus(at)), "{case} {when}"),
            OnDisabled::AllOnes => assert_eq!(raw::load64(at), Ok(u64::MAX), "{case} {when}"),
            _ => {
                assert_eq!(mapping.try_read::<u64>(page * PAGE), Err(AccessError::WouldBlock { offset: page * PAGE }));
                assert_eq!(resident(base, PAGES * PAGE), 0, "{case} {when}: pages are mapped");
            }
        }
    }
}

fn check_all(case: &Case, mapping: &Mapping, when: &str) {
    for page in 0..PAGES {
        // By turns, so that both are the first to touch some pages.
        let got = match page % 2 {
            0 => raw::load64(addr(mapping) + page * PAGE).map_err(|hit| format!("{hit:?}")),
            _ => mapping.read::<u64>(page * PAGE).map_err(|e| e.to_string()),
        };
        assert_eq!(got, Ok(stamp(page)), "{case} {when}, page {page}");
    }
}

#[test]
fn what_was_swapped_out_comes_back_as_it_was_and_to_an_enabled_region_only() {
    support::start();
    in_group(Out::Swap, |group| {
        every_swappable_case(|case| {
            let region = case.region(PAGES);
            let mapping = case.map(&region);
            for page in 0..PAGES {
                mapping.write(page * PAGE, stamp(page)).expect("enabled");
            }
            take_out(group, &region, &format!("{case} enabled"));
            check_all(case, &mapping, "swapped out while enabled");

            take_out(group, &region, &format!("{case} before a revocation"));
            region.disable().expect("it revokes");
            check_refused(case, &mapping, "swapped out before");
            region.enable().expect("it comes back");
            check_all(case, &mapping, "swapped out before a revocation");

            region.disable().expect("it revokes");
            take_out(group, &region, &format!("{case} disabled"));
            check_refused(case, &mapping, "swapped out while disabled");
            region.enable().expect("it comes back");
            check_all(case, &mapping, "swapped out while disabled");

            take_out(group, &region, &format!("{case} before a reset"));
            region.reset(|owner| owner.write(0, stamp(0))).expect("it resets").expect("the owner writes");
            check_all(case, &mapping, "swapped out before a reset");
            // Without a userfaultfd no access waits for a reset: the mapping refuses.
            assert!(!case.can_wait() || region.stats().degraded == 0, "{case}");
        });
    });
}

#[test]
fn revoking_and_reclaiming_at_once_loses_nothing_and_opens_nothing() {
    support::start();
    in_group(Out::Swap, |group| {
        for strategy in STRATEGIES {
            let case = Case { strategy, policy: OnDisabled::Sigbus, memory: Memory::Memfd };
            if case.is_legal() {
                churn(&case, group);
            }
        }
    });
}

/// One thread reads everywhere, one counts up in a page, one has pages swapped out; this one revokes and gives back.
fn churn(case: &Case, group: &Group) {
    let region = case.region(PAGES);
    let mapping = case.map(&region);
    for page in 0..PAGES {
        mapping.write(page * PAGE, stamp(page)).expect("enabled");
    }
    let until = Instant::now() + support::stress_time(700);
    let stop = AtomicBool::new(false);
    // Counted before the store is tried, and after it has succeeded.
    let (tried, stored) = (AtomicU64::new(0), AtomicU64::new(0));
    let counter = 8;
    thread::scope(|scope| {
        scope.spawn(|| {
            for page in (0..PAGES).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                let read = mapping.read::<u64>(page * PAGE);
                assert!(matches!(read, Ok(v) if v == stamp(page)) || matches!(read, Err(AccessError::Disabled { .. })));
                let loaded = raw::load64(addr(&mapping) + page * PAGE);
                assert!(loaded == Ok(stamp(page)) || loaded == Err(Hit::bus(addr(&mapping) + page * PAGE)));
            }
        });
        scope.spawn(|| {
            for n in (1..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                tried.store(n, Ordering::SeqCst);
                if mapping.write(counter, n).is_ok() {
                    stored.store(n, Ordering::SeqCst);
                }
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                group.reclaim();
            }
        });
        let _end = AtTheEnd(&stop);
        let mut rounds = 0;
        while Instant::now() < until || rounds < 3 {
            region.disable().expect("it revokes");
            let before = (stored.load(Ordering::SeqCst), region.owner().read::<u64>(counter).expect("the owner reads"));
            thread::yield_now();
            let after = region.owner().read::<u64>(counter).expect("the owner reads");
            assert_eq!(before.1, after, "{case}: a store to a disabled region");
            assert!(before.0 <= after && after <= tried.load(Ordering::SeqCst), "{case}: a store was lost");
            region.enable().expect("it comes back");
            thread::yield_now();
            rounds += 1;
        }
    });
    assert_eq!(region.stats().degraded, 0, "{case}");
}
