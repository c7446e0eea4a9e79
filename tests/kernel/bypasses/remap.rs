//! The application, or foreign code in its process, changes the range of a mapping: mprotect, munmap, mremap.

use super::{SECRET, addr, with_secret};
use crate::support::matrix::{STRATEGIES, every_case, every_case_with};
use crate::support::raw::{self, Hit};
use crate::support::{self, child};
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::{AccessError, MapOptions, OnDisabled, Region, Strategy};
use std::time::Duration;

/// All of the range belongs to the mapping, so the application's own changes there last until the next revocation.
#[test]
fn what_mprotect_and_munmap_changed_is_revoked_and_comes_back_whole() {
    support::start();
    // In a process of its own, because any other thread's mmap may fill the hole.
    let ended = child::alone(|| {
        every_case(|case| {
            let region = case.region(4);
            let page = case.page();
            let [mapping, other] = [case.map(&region), case.map(&region)];
            let base = addr(&mapping);
            for at in (0..region.len()).step_by(page) {
                mapping.write(at, SECRET).expect("enabled");
            }
            // A second page that is read-only, a third page of foreign memory, and a hole.
            let split = || {
                raw::protect(base + page, page, libc::PROT_READ).expect("the range is the application's too");
                raw::unmap(base + 2 * page, 2 * page).expect("the range is the application's too");
                raw::map_if_free(base + 2 * page, page).expect("a hole");
            };
            let check_refused = |when: &str| {
                if case.policy != OnDisabled::Block {
                    for at in (base..base + region.len()).step_by(page) {
                        let load = raw::load64(at);
                        assert!(load == Err(Hit::bus(at)) || load == Ok(u64::MAX), "{case} {when} {at:#x}: {load:?}");
                    }
                }
            };
            let check_there = |when: &str| {
                for mapping in [&mapping, &other] {
                    for at in (0..region.len()).step_by(page) {
                        assert_eq!(mapping.read::<u64>(at), Ok(SECRET), "{case} {when} {at:#x}");
                        assert_eq!(raw::load64(addr(mapping) + at), Ok(SECRET), "{case} {when} {at:#x}");
                        assert_eq!(raw::store64(addr(mapping) + at, SECRET), Ok(()), "{case} {when} {at:#x}");
                    }
                }
            };
            for _ in 0..2 {
                split();
                region.disable().expect("it revokes");
                check_refused("split while enabled");
                region.enable().expect("it comes back");
                check_there("split while enabled");
                region.disable().expect("it revokes");
                split();
                region.enable().expect("it comes back");
                check_there("split while disabled");
                split();
                region.reset(|_| ()).expect("it resets");
                check_there("split before a reset");
                region.reset(|_| split()).expect("it resets");
                check_there("split during a reset");
            }
        });
    });
    ended.well();
}

/// Foreign memory in the place of all of it: Detach takes it for its own page tables. It refuses with the region all the same.
#[test]
fn foreign_memory_in_the_place_of_a_mapping_goes_with_it_and_under_detach_comes_back_too() {
    const FOREIGN: u64 = 5;
    support::start();
    // In a process of its own, because any other thread's mmap may fill the hole.
    let ended = child::alone(|| {
        every_case_with(&[OnDisabled::Sigbus, OnDisabled::AllOnes], |case| {
            let region = case.region(4);
            let [mapping, other] = [case.map(&region), case.map(&region)];
            let base = addr(&mapping);
            mapping.write(0, SECRET).expect("enabled");
            raw::unmap(base, region.len()).expect("the range is the application's too");
            raw::map_if_free(base, region.len()).expect("a hole");
            raw::protect(base, region.len(), libc::PROT_READ | libc::PROT_WRITE).expect("it is the application's");
            raw::store64(base, FOREIGN).expect("it is the application's");
            for _ in 0..2 {
                region.disable().expect("it revokes");
                let read = mapping.read::<u64>(0);
                assert!(matches!(read, Err(AccessError::Disabled { .. }) | Ok(u64::MAX)), "{case}: {read:?}");
                let load = raw::load64(base);
                assert!(load == Err(Hit::bus(base)) || load == Ok(u64::MAX), "{case}: {load:?}");
                region.enable().expect("it comes back");
                let there = if case.strategy == Strategy::Detach { FOREIGN } else { SECRET };
                assert_eq!(raw::load64(base), Ok(there), "{case}");
                assert_eq!(other.read::<u64>(0), Ok(SECRET), "{case}: another mapping of the region");
            }
        });
    });
    ended.well();
}

/// Private memory that Detach has taken for its own page tables is lost when those are trimmed, as the documents say.
#[test]
fn foreign_memory_in_the_place_of_a_mapping_is_lost_when_it_is_trimmed() {
    support::start();
    let ended = child::alone(|| {
        let build = Region::builder(4 * support::page_size()).strategy(Strategy::Detach).trim_detached();
        let region = build.build().expect("Detach is there");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let base = addr(&mapping);
        raw::unmap(base, region.len()).expect("the range is the application's too");
        raw::map_if_free(base, region.len()).expect("a hole");
        raw::protect(base, region.len(), libc::PROT_READ | libc::PROT_WRITE).expect("it is the application's");
        // Trimmed in the background, or not yet.
        let lost = (0..3000).any(|_| {
            raw::store64(base, SECRET).expect("it is the application's");
            region.disable().expect("it revokes");
            std::thread::sleep(Duration::from_millis(1));
            region.enable().expect("it comes back");
            raw::load64(base) == Ok(0)
        });
        assert!(lost);
    });
    ended.well();
}

/// A mapping over the owner's view changes nothing for the region's mappings.
#[test]
fn a_split_mapping_is_revoked_although_the_owners_view_was_mapped_over() {
    support::start();
    // In a process of its own, because any other thread's mmap may fill the hole.
    let ended = child::alone(|| {
        every_case_with(&[OnDisabled::Sigbus, OnDisabled::AllOnes], |case| {
            let region = case.region(4);
            let page = case.page();
            let mapping = case.map(&region);
            let base = addr(&mapping);
            for at in (0..region.len()).step_by(page) {
                mapping.write(at, SECRET).expect("enabled");
            }
            let owner = region.owner().as_ptr().expose_provenance();
            raw::unmap(owner, page).expect("mapped");
            raw::map_if_free(owner, page).expect("a hole");
            for _ in 0..2 {
                raw::protect(base + page, page, libc::PROT_READ).expect("the range is the application's too");
                raw::unmap(base + 2 * page, page).expect("the range is the application's too");
                region.disable().expect("it revokes");
                for at in (base..base + region.len()).step_by(page) {
                    assert_ne!(raw::load64(at), Ok(SECRET), "{case}: G1 is broken");
                }
                region.enable().expect("it comes back");
                for at in (base..base + region.len()).step_by(page) {
                    assert_eq!(raw::load64(at), Ok(SECRET), "{case}");
                }
            }
        });
    });
    ended.well();
}

/// A documented limit: code in this process that duplicates or moves a live mapping gets a view that no revocation
/// knows of.
#[test]
fn foreign_mremap_of_a_live_mapping_is_a_documented_limit_and_harms_no_one_else() {
    support::start();
    // In a process of its own, because memory that another thread maps into the hole would go with the mapping.
    let ended = child::alone(|| {
        for strategy in STRATEGIES {
            let Ok(region) = Region::builder(64 << 10).strategy(strategy).build() else { continue };
            let mapping = region.map(MapOptions::new()).expect("it maps");
            let base = addr(&mapping);
            mapping.write(0, SECRET).expect("enabled");
            let copy = raw::move_away(base, 0, 64 << 10).expect("a shared mapping can be duplicated");
            region.disable().expect("it revokes");
            assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{strategy}: the mapping itself is revoked");
            match strategy {
                Strategy::Withdraw => assert_eq!(raw::load64(copy), Err(Hit::bus(copy)), "{strategy}: and the copy"),
                _ => assert_eq!(raw::load64(copy), Ok(SECRET), "{strategy}: the copy is not (see SECURITY)"),
            }
            region.enable().expect("it comes back");
            assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{strategy}");
            raw::unmap(copy, 64 << 10).expect("the copy is ours");

            // Moving a revoked mapping gives nothing, and a foreign mapping in its place is left alone.
            region.disable().expect("it revokes");
            let moved = raw::move_away(base, 64 << 10, 128 << 10);
            if let Ok(moved) = moved {
                assert_ne!(raw::load64(moved), Ok(SECRET), "{strategy}");
                raw::unmap(moved, 128 << 10).expect("ours");
            }
        }
    });
    ended.well();
}

/// The same while disabled. The duplicate is then of a cover, which has nothing of the region, or of private memory,
/// which cannot be duplicated.
#[test]
fn a_duplicate_of_a_disabled_mapping_has_nothing() {
    support::start();
    every_case(|case| {
        let (region, mapping, base) = with_secret(case);
        region.disable().expect("it revokes");
        let copy = raw::move_away(base, 0, mapping.len());
        match (copy, case.policy) {
            (Ok(copy), OnDisabled::Sigbus) => assert_eq!(raw::load64(copy), Err(Hit::bus(copy)), "{case}"),
            (copy, _) => assert_eq!(copy, Err(Errno::EINVAL), "{case}"),
        }
        region.enable().expect("it comes back");
        if let Ok(copy) = copy {
            assert_eq!(raw::load64(copy), Err(Hit::bus(copy)), "{case}: the copy of a cover refuses for good");
            raw::unmap(copy, mapping.len()).expect("ours");
        }
        assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}");
        region
            .reset(|_| assert_eq!(raw::move_away(base, 0, mapping.len()), Err(Errno::EINVAL), "{case}: a reset"))
            .expect("it resets");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
        for _ in 0..2 {
            region.disable().expect("it revokes");
            if case.policy != OnDisabled::Block {
                assert_ne!(raw::load64(base), Ok(SECRET), "{case}: the mapping itself goes on being revoked");
            }
            region.enable().expect("it comes back");
        }
    });
}

/// `mremap` unmaps its target before it finds that a limit forbids the rest. Even then the range must not be free.
#[test]
fn an_address_space_limit_lowered_below_what_is_used_leaves_no_range_free() {
    support::start();
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let ended = child::alone(|| {
        for strategy in STRATEGIES {
            let Ok(region) = Region::builder(8 << 20).strategy(strategy).build() else { continue };
            let mapping = region.map(MapOptions::new()).expect("it maps");
            mapping.write(0, SECRET).expect("enabled");
            let base = addr(&mapping);
            let (_, hard) = getrlimit(Resource::RLIMIT_AS).expect("it has one");
            let limited = |verb: &dyn Fn()| {
                setrlimit(Resource::RLIMIT_AS, 1 << 20, hard).expect("it lowers");
                verb();
                setrlimit(Resource::RLIMIT_AS, hard, hard).expect("it rises");
                assert_eq!(raw::map_if_free(base, mapping.len()), Err(Errno::EEXIST), "{strategy}: the range is free");
            };
            limited(&|| {
                let disabled = region.disable();
                assert_eq!(disabled.is_ok(), !region.is_enabled(), "{strategy}: {disabled:?}");
            });
            if region.is_enabled() {
                region.disable().expect("nothing is in the way any more");
            }
            // Degraded: where no cover can be mapped, the rights are taken away.
            assert!(raw::load64(base).is_err(), "{strategy}");
            // Revoked as intended now, so that it comes back as intended.
            region.enable().expect("nothing is in the way");
            region.disable().expect("nothing is in the way");
            limited(&|| {
                let enabled = region.enable();
                assert_eq!(enabled.is_ok(), region.is_enabled(), "{strategy}: {enabled:?}");
            });
            if !region.is_enabled() {
                assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{strategy}: still refused");
                region.enable().expect("nothing is in the way any more");
            }
            assert_eq!(raw::load64(base), Ok(SECRET), "{strategy}");
        }
    });
    ended.well();
}
