//! A forked child has none of its parent's mappings, and does no harm with what it inherits.
#![expect(unsafe_code, reason = "forks, and maps memory in the child")]

use crate::support;
use crate::support::forking;
use crate::support::matrix::{POLICIES, STRATEGIES};
use crate::support::{child, raw};
use nix::sched::{CloneFlags, unshare};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::unistd::{getpid, pipe, read, write};
use revocable_mmio::fault::{FaultFlags, NoLock};
use revocable_mmio::{
    AccessError, MapError, MapOptions, Mapping, Monitor, MonitorError, OnDisabled, Prot, ProtectError, Region,
    RevokeError, Strategy,
};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

mod starting_threads;

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
const PAGE: usize = 4096;
const PAGES: usize = 16;

/// Maps new memory in the child at an address where it has nothing, and returns a word of it.
fn own_memory(at: *mut u8, len: usize) -> *mut u64 {
    let (at, len) = (NonZeroUsize::new(at.addr()), NonZeroUsize::new(len).expect("not 0"));
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let own = unsafe { mmap_anonymous(at, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
    own.expect("the child has nothing there").cast::<u64>().as_ptr()
}

fn made(strategy: Strategy) -> (Region, Mapping) {
    // A monitor of its own, so that its end is the region's.
    let monitor = Monitor::with_threads(1).expect("a userfaultfd");
    let region = Region::builder(1 << 20).strategy(strategy).monitor(monitor).build().expect("the strategy is there");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    mapping.write::<u64>(0, 7).expect("enabled");
    (region, mapping)
}

#[test]
fn a_child_that_drops_what_it_inherits_unmaps_nothing_of_its_own() {
    support::start();
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw] {
        let (region, mapping) = made(strategy);
        let mut inherited = Some((region, mapping));
        let fine = forking::is_fine(|| {
            let (region, mapping) = inherited.take().expect("inherited");
            let own = own_memory(mapping.as_ptr(), mapping.len());
            // SAFETY: just mapped.
            unsafe { own.write_volatile(42) };
            let refused = matches!(region.disable(), Err(RevokeError::Forked))
                && matches!(region.map(MapOptions::new()), Err(MapError::Forked));
            drop(region);
            drop(mapping);
            // SAFETY: mapped, unless a drop has unmapped it.
            refused && unsafe { own.read_volatile() } == 42
        });
        assert!(fine, "{strategy}");
        let (region, mapping) = inherited.expect("the parent still has it");
        assert_eq!(mapping.read::<u64>(0), Ok(7), "{strategy}");
        region.disable().expect("nothing is in the way");
        assert!(mapping.read::<u64>(0).is_err());
        region.enable().expect("comes back");
        assert_eq!(mapping.read::<u64>(0), Ok(7), "{strategy}");
    }
}

#[test]
fn a_child_does_not_wait_for_its_parents_monitor() {
    support::start();
    let (region, mapping) = made(Strategy::Zap);
    drop(mapping);
    let mut inherited = Some(region);
    assert!(forking::is_fine(|| {
        drop(inherited.take());
        true
    }));
    let region = inherited.expect("the parent still has it");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    assert_eq!(mapping.read::<u64>(0), Ok(7));
}

/// The owner's view is not inherited either, whether or not the region has a mapping.
#[test]
fn a_child_that_drops_a_region_keeps_its_own_memory_where_the_owners_view_was() {
    support::start();
    for strategy in STRATEGIES {
        for mapped in [false, true] {
            let (region, mapping) = made(strategy);
            let mut inherited = Some((region, mapped.then_some(mapping)));
            let fine = forking::is_fine(|| {
                let (region, mapping) = inherited.take().expect("inherited");
                let own = own_memory(region.owner().as_ptr(), region.owner().len());
                // SAFETY: just mapped.
                unsafe { own.write_volatile(42) };
                drop(region);
                drop(mapping);
                raw::load64(own.expose_provenance()) == Ok(42)
            });
            assert!(fine, "{strategy}, mapped: {mapped}");
            let (region, _mapping) = inherited.expect("the parent still has it");
            assert_eq!(region.owner().read::<u64>(0), Ok(7), "{strategy}");
        }
    }
}

/// The objects of a region that a child has inherited.
struct Inherited {
    region: Region,
    mapping: Mapping,
    /// Resolves its own faults (Zap).
    own: Mapping,
    monitor: Monitor,
}

/// An attempt of a child to use it. Returns whether the child was told that the region is its parent's.
type Act = fn(&Inherited) -> bool;

const ACTS: [(&str, Act); 9] = [
    ("handle_ready", |its| its.monitor.handle_ready(64) == Err(MonitorError::Foreign)),
    ("a fault", |its| {
        (0..PAGES).all(|page| {
            let _ = its.mapping.fault(page * PAGE, FaultFlags::DEFAULT, &mut NoLock::default());
            let _ = its.own.fault(page * PAGE, FaultFlags::DEFAULT | FaultFlags::WRITE, &mut NoLock::default());
            let _ = its.region.fault(page * PAGE, FaultFlags::DEFAULT, &mut NoLock::default());
            true
        })
    }),
    ("accesses", |its| {
        (0..PAGES).all(|page| {
            [&its.own, &its.mapping]
                .into_iter()
                .all(|mapping| mapping.read::<u64>(page * PAGE).is_err() && mapping.write(page * PAGE, 1_u64).is_err())
        })
    }),
    ("accesses on its behalf", |its| {
        (0..PAGES).all(|page| {
            [&its.own, &its.mapping].into_iter().all(|mapping| {
                mapping.try_read::<u64>(page * PAGE).is_err() && mapping.try_write(page * PAGE, 1_u64).is_err()
            })
        })
    }),
    ("protect", |its| {
        let none = |mapping: &Mapping| mapping.protect(0..PAGES * PAGE, Prot::None);
        none(&its.mapping) == Err(ProtectError::Forked) && none(&its.own) == Err(ProtectError::Forked)
    }),
    ("a pin", |its| its.region.pin(0..PAGE, FaultFlags::WRITE).is_err()),
    ("a mapping", |its| matches!(its.region.map(MapOptions::new()), Err(MapError::Forked))),
    ("a change", |its| {
        matches!(its.region.try_disable(), Err(RevokeError::Forked))
            && matches!(its.region.try_enable(), Err(RevokeError::Forked))
            && matches!(its.region.try_reset(|_| ()), Err(RevokeError::Forked))
    }),
    ("the end", |its| {
        raw::drop_copies(&its.region, &its.mapping);
        true
    }),
];

/// Each access of a child that finds nothing, or would wait, returns `Forked`, and not the error for a truncated file.
fn each_access_is_told(mapping: &Mapping) -> bool {
    let told = |what: &str, error: Option<AccessError>| {
        let fine = matches!(error, Some(AccessError::Forked { .. }));
        if !fine {
            println!("{what}: {error:?}");
        }
        fine
    };
    let mut bytes = [0; 64];
    let register = mapping.register::<u32>(8).expect("it is inside");
    let all = [
        told("read", mapping.read::<u64>(8).err()),
        told("write", mapping.write(8, 1_u64).err()),
        told("fetch_add", mapping.fetch_add(8, 1_u32).err()),
        told("compare_exchange", mapping.compare_exchange(8, 0_u64, 1).err()),
        told("read_slice", mapping.read_slice(8, &mut bytes).err().map(|e| e.error)),
        told("write_slice", mapping.write_slice(8, &bytes).err().map(|e| e.error)),
        told("fill", mapping.fill(8, 1, 64).err().map(|e| e.error)),
        told("Register::read", register.read().err()),
        told("Register::write", register.write(1).err()),
        told("read_with", mapping.read_with::<u64>(8, FaultFlags::DEFAULT).err()),
        told("write_with", mapping.write_with(8, 1_u64, FaultFlags::DEFAULT).err()),
        told("try_read", mapping.try_read::<u64>(8).err()),
        told("try_write", mapping.try_write(8, 1_u64).err()),
    ];
    all.iter().all(|told| *told)
}

#[test]
fn a_childs_access_says_that_the_region_is_the_parents() {
    support::start();
    for strategy in STRATEGIES {
        for policy in POLICIES {
            for accessors_only in [false, true] {
                let what = format!("{strategy} {policy:?}, accessors only: {accessors_only}");
                let monitor = Monitor::with_threads(1).expect("a userfaultfd");
                let region = Region::builder(1 << 16).strategy(strategy).monitor(monitor).build().expect("a region");
                let options = MapOptions::new().on_disabled(policy);
                let options = if accessors_only { options.accessors_only() } else { options };
                let mapping = region.map(options).expect("it maps");
                mapping.write(8, SECRET).expect("enabled");
                assert!(forking::is_fine(|| each_access_is_told(&mapping)), "{what}");
                // Forked in the middle of a change. The child never sees its end.
                let during = region.reset(|_| {
                    forking::is_fine(|| {
                        let waits = mapping.with_access(|_| ());
                        each_access_is_told(&mapping) && matches!(waits, Err(AccessError::Forked { .. }))
                    })
                });
                assert!(during.expect("nothing is in the way"), "{what}, in a reset");
                assert_eq!(mapping.read(8), Ok(SECRET), "{what}");
                if policy == OnDisabled::Block {
                    region.disable().expect("nothing is in the way");
                    assert!(forking::is_fine(|| each_access_is_told(&mapping)), "{what}, disabled");
                }
            }
        }
    }
}

/// The child takes the region for enabled, as it was at the fork.
#[test]
fn nothing_that_a_child_does_opens_its_parents_disabled_mapping() {
    support::start();
    for strategy in STRATEGIES {
        for policy in POLICIES {
            for (name, act) in ACTS {
                let what = format!("{strategy} {policy:?}: {name}");
                let monitor = Monitor::with_threads(1).expect("a userfaultfd");
                let region = Region::builder(PAGES * PAGE).strategy(strategy).monitor(monitor.clone());
                let region = region.build().expect("the strategy is there");
                let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("it maps");
                let own = region.map(MapOptions::new().on_disabled(policy).accessors_only()).expect("it maps");
                for page in 0..PAGES {
                    region.owner().write(page * PAGE, SECRET).expect("the owner writes");
                }
                let its = Inherited { region, mapping, own, monitor };
                let (go, may_go) = pipe().expect("a pipe");
                let (is_there, there) = pipe().expect("a pipe");
                let child = thread::scope(|scope| {
                    let child = scope.spawn(|| {
                        forking::is_fine(|| write(&there, &[0]).is_ok() && read(&go, &mut [0]).is_ok() && act(&its))
                    });
                    // Forked while enabled.
                    read(&is_there, &mut [0]).expect("the child lives");
                    its.region.disable().expect("nothing is in the way");
                    write(&may_go, &[0]).expect("the child lives");
                    // Before the child ends, and after.
                    let mut ended = false;
                    while !ended {
                        ended = child.is_finished();
                        for page in 0..PAGES {
                            let at = its.mapping.as_ptr().expose_provenance() + page * PAGE;
                            if policy != OnDisabled::Block {
                                assert_ne!(raw::load64(at), Ok(SECRET), "{what}: page {page}");
                                let own = its.own.as_ptr().expose_provenance() + page * PAGE;
                                assert_ne!(raw::load64(own), Ok(SECRET), "{what}: page {page}");
                            }
                            assert_ne!(raw::write_from(at, 8).is_ok(), policy != OnDisabled::AllOnes, "{what}: {page}");
                            assert_eq!(its.region.owner().read::<u64>(page * PAGE), Ok(SECRET), "{what}");
                        }
                    }
                    child.join().expect("no panic")
                });
                if policy == OnDisabled::Block {
                    let there = support::count::resident(its.mapping.as_ptr().addr(), PAGES * PAGE);
                    assert_eq!(there, 0, "{what}: pages are there");
                }
                assert!(child, "{what}: the child was told something else");
                its.region.enable().expect("it comes back");
                for page in 0..PAGES {
                    let at = its.mapping.as_ptr().expose_provenance() + page * PAGE;
                    assert_eq!(raw::load64(at), Ok(SECRET), "{what}");
                    assert_eq!(its.own.read::<u64>(page * PAGE), Ok(SECRET), "{what}");
                }
                assert_eq!(its.region.stats().degraded, 0, "{what}");
            }
        }
    }
}

fn builds_a_region_of_each_strategy() {
    for strategy in STRATEGIES {
        let region = Region::builder(64 << 10).strategy(strategy).build().expect("the strategy is there");
        for policy in [OnDisabled::AllOnes, OnDisabled::Block] {
            let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("it maps");
            mapping.write(0, 5_u64).expect("enabled");
            region.disable().expect("nothing is in the way");
            region.enable().expect("it comes back");
            assert_eq!(mapping.read::<u64>(0), Ok(5));
        }
    }
}

/// The child follows the advice of the error `Forked`, whatever the parent's other threads are doing.
#[test]
fn a_child_builds_a_region_of_its_own_while_its_parents_threads_map() {
    support::start();
    let ended = child::alone(|| {
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        builds_a_region_of_each_strategy();
                    }
                });
            }
            let hung = (0..40)
                .filter(|_| {
                    !forking::is_fine(|| {
                        builds_a_region_of_each_strategy();
                        true
                    })
                })
                .count();
            end.store(true, Ordering::Relaxed);
            assert_eq!(hung, 0, "of 40 children");
        });
    });
    ended.well();
}

/// A process id is no identity: each is the first process of its namespace.
#[test]
fn a_child_with_its_parents_process_id_is_another_process() {
    support::start();
    require!(support::is_root(), "only root can make a pid namespace", could: false);
    let ended = child::alone(|| {
        for strategy in STRATEGIES {
            if let Err(e) = unshare(CloneFlags::CLONE_NEWPID) {
                return support::skip(&format!("no pid namespace can be had: {e}"), false);
            }
            let fine = forking::is_fine(|| {
                assert_eq!(getpid().as_raw(), 1, "the first of its namespace");
                let (region, mapping) = made(strategy);
                // The region starts all its threads here, since this process cannot start any after unshare.
                region.disable().expect("nothing is in the way");
                region.enable().expect("it comes back");
                unshare(CloneFlags::CLONE_NEWPID).expect("the first time it could");
                let refused = forking::is_fine(|| {
                    let first = getpid().as_raw() == 1;
                    let ended = region.reset(|_| {
                        // SAFETY: ends the child.
                        unsafe { nix::libc::_exit(2) }
                    });
                    first
                        && matches!(ended, Err::<(), _>(RevokeError::Forked))
                        && matches!(region.disable(), Err(RevokeError::Forked))
                        && matches!(region.enable(), Err(RevokeError::Forked))
                        && matches!(region.map(MapOptions::new()), Err(MapError::Forked))
                });
                assert!(refused, "{strategy}: the child passes for its parent");
                assert_eq!(mapping.read::<u64>(0), Ok(7), "{strategy}");
                let patience = std::time::Duration::from_secs(5);
                assert!(region.disable_timeout(patience).expect("the parent's region goes on"), "{strategy}");
                assert!(region.enable().expect("the parent's region goes on"), "{strategy}");
                assert_eq!(mapping.read::<u64>(0), Ok(7), "{strategy}");
                true
            });
            assert!(fine, "{strategy}: see above");
        }
    });
    ended.well();
}
