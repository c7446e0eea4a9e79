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
    let maps = std::fs::read("/proc/self/maps").expect("there is /proc");
    // Names at the ends of lines may be any bytes.
    let maps = String::from_utf8_lossy(&maps);
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

/// Found by `fuzz_regions`: what was in one piece was taken for untouched, and came back with all of its rights.
#[test]
fn rights_taken_away_from_a_whole_mapping_do_not_come_back_with_a_revocation() {
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
        for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block] {
            let region = Region::builder(64 << 10).strategy(strategy).build().expect("the strategy is there");
            let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("it maps");
            mapping.write::<u64>(0, 7).expect("enabled");
            make_read_only(&mapping, 0, region.len());
            let addr = mapping.as_ptr().addr();
            for _ in 0..2 {
                region.disable().expect("nobody is in the way");
                region.enable().expect("comes back");
                assert_eq!(rights(addr), "r--s", "{strategy} {policy:?}");
                region.reset(|_| ()).expect("nobody is in the way");
                assert_eq!(rights(addr), "r--s", "{strategy} {policy:?} after a reset");
                assert_eq!(mapping.read::<u64>(0), Ok(7), "{strategy} {policy:?}");
                // Accessors that use the owner's view have its rights.
                assert_eq!(mapping.write::<u64>(0, 7).is_ok(), cfg!(revocable_portable), "{strategy} {policy:?}");
            }
            assert_eq!(region.stats().degraded, 0, "{strategy} {policy:?}");
        }
    }
}

/// /proc/self/maps has the names of all files that are mapped, and not every name is text.
#[test]
fn a_split_mapping_is_revoked_beside_a_file_whose_name_is_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let name = [b"revocable-\xff\xe4-".as_slice(), std::process::id().to_string().as_bytes()].concat();
    let path = std::env::temp_dir().join(std::ffi::OsStr::from_bytes(&name));
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
    file.set_len(4096).expect("it grows");
    // SAFETY: nobody else writes or truncates it, and nobody reads the mapping.
    let beside = unsafe { memmap2::Mmap::map(&file) }.expect("it can be mapped");
    std::fs::remove_file(&path).expect("it was just made");
    let region = Region::builder(64 << 10).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    make_read_only(&mapping, 0, region.page_size());
    region.disable().expect("nobody is in the way");
    region.enable().expect("comes back");
    assert_eq!(rights(mapping.as_ptr().addr()), "r--s");
    assert_eq!(region.stats().degraded, 0);
    drop(beside);
}
