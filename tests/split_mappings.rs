//! A mapping that the application has split by mprotect is revoked like any other, and stays split.
#![expect(unsafe_code, reason = "mprotect of a part of a mapping is what is tested")]

use nix::sys::mman::{ProtFlags, mprotect};
use revocable_mmio::{AccessError, MapOptions, Mapping, OnDisabled, Region, Strategy};
use std::ptr::NonNull;

fn make_read_only(mapping: &Mapping, offset: usize, len: usize) {
    let at = NonNull::new(mapping.as_ptr().wrapping_add(offset).cast()).expect("mapped");
    // SAFETY: inside the mapping.
    unsafe { mprotect(at, len, ProtFlags::PROT_READ) }.expect("the mapping's rights can be changed");
}

/// The rights of the mapping at `at`, as in /proc/self/maps.
fn rights(at: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is /proc");
    let line = maps.lines().find(|line| {
        let (range, _) = line.split_once(' ').expect("a range first");
        let (start, end) = range.split_once('-').expect("two addresses");
        let number = |s| usize::from_str_radix(s, 16).expect("hexadecimal");
        (number(start)..number(end)).contains(&at)
    });
    line.and_then(|line| line.split(' ').nth(1)).unwrap_or("none").to_owned()
}

#[test]
fn rights_that_the_application_has_changed_survive_a_revocation() {
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
        for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block] {
            let region = Region::builder(5 << 20).strategy(strategy).build().expect("the strategy is there");
            let page = region.page_size();
            let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("it maps");
            for at in (0..region.len()).step_by(8 * page) {
                mapping.write::<u64>(at, at as u64 + 1).expect("enabled");
            }
            make_read_only(&mapping, 4 << 20, page);
            let changed = mapping.as_ptr().addr() + (4 << 20);
            assert_eq!(rights(changed), "r--s");
            for _ in 0..3 {
                region.disable().expect("nobody is in the way");
                if policy == OnDisabled::Sigbus {
                    for at in [0, 4 << 20, (4 << 20) + page, region.len() - page] {
                        assert_eq!(mapping.read::<u64>(at), Err(AccessError::Disabled { offset: at }), "{strategy}");
                        let register = mapping.register::<u64>(at).expect("inside");
                        assert!(register.read().is_err(), "{strategy} {policy:?}: reached at {at:#x}");
                    }
                }
                region.enable().expect("comes back");
                assert_eq!(rights(changed), "r--s", "{strategy} {policy:?}");
                assert_eq!(rights(changed - page), "rw-s", "{strategy} {policy:?}");
                for at in (0..region.len()).step_by(8 * page) {
                    assert_eq!(mapping.read::<u64>(at), Ok(at as u64 + 1), "{strategy} {policy:?}");
                }
                region.reset(|_| ()).expect("nobody is in the way");
                assert_eq!(rights(changed), "r--s", "{strategy} {policy:?} after a reset");
                assert_eq!(mapping.read::<u64>(4 << 20), Ok((4 << 20) + 1));
            }
            assert_eq!(region.stats().degraded, 0, "{strategy} {policy:?}");
        }
    }
}
