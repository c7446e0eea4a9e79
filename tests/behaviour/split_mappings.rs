//! A mapping whose parts have rights of their own (`Mapping::protect`) is revoked whole. It is restored with the rights
//! that the crate was told, under every strategy and policy, for a device's file too.

use crate::support;
use crate::support::addr;
use crate::support::matrix::{Case, POLICIES, every_case, file_in};
use crate::support::raw;
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{DmaAccess, DmaSegment, DmaSpace, Iommu};
use revocable_mmio::{AccessError, Backing, MapOptions, Mapping, OnDisabled, OnRevoke, Prot, ProtectError, Region};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
/// The rights of four pages.
const RIGHTS: [Prot; 4] = [Prot::ReadWrite, Prot::None, Prot::Read, Prot::ReadWrite];

fn protect_all(mapping: &Mapping, page: usize, rights: [Prot; 4]) {
    for (nth, rights) in rights.into_iter().enumerate() {
        mapping.protect(nth * page..(nth + 1) * page, rights).expect("inside, and no more than it was made with");
    }
}

/// A region of four pages, with the secret in each, and a mapping with rights of its own for each.
fn split(case: &Case, options: MapOptions) -> (Region, Mapping) {
    let region = case.region(4);
    let page = case.page();
    for nth in 0..4 {
        region.owner().write(nth * page, SECRET).expect("the owner writes");
    }
    let mapping = region.map(options).unwrap_or_else(|e| panic!("{case} maps: {e}"));
    protect_all(&mapping, page, RIGHTS);
    (region, mapping)
}

/// Checks by raw pointers that each page allows exactly what it should.
fn check_raw(mapping: &Mapping, page: usize, rights: [Prot; 4], what: &str) {
    for (nth, rights) in rights.into_iter().enumerate() {
        let at = addr(mapping) + nth * page;
        let (load, store) = (raw::load64(at), raw::store64(at, SECRET));
        match rights {
            Prot::None => assert!(load.is_err_and(raw::Hit::is_segv), "{what}, page {nth}: {load:?}"),
            Prot::Read | Prot::ReadWrite => assert_eq!(load, Ok(SECRET), "{what}, page {nth}"),
        }
        match rights {
            Prot::None | Prot::Read => assert!(store.is_err_and(raw::Hit::is_segv), "{what}, page {nth}: {store:?}"),
            Prot::ReadWrite => assert_eq!(store, Ok(()), "{what}, page {nth}"),
        }
    }
}

/// Checks the same by every kind of accessor.
fn check_accessors(mapping: &Mapping, page: usize, rights: [Prot; 4], what: &str) {
    for (nth, rights) in rights.into_iter().enumerate() {
        let offset = nth * page;
        let what = format!("{what}, page {nth} is {rights:?}");
        let refused = AccessError::Protected { offset };
        let load = if rights == Prot::None { Err(refused) } else { Ok(SECRET) };
        assert_eq!(mapping.read::<u64>(offset), load, "{what}");
        assert_eq!(mapping.try_read::<u64>(offset), load, "{what}: on the caller's behalf");
        assert_eq!(mapping.read_with::<u64>(offset, FaultFlags::WAIT), load, "{what}: on the caller's behalf");
        assert_eq!(mapping.register::<u64>(offset).expect("inside").read(), load, "{what}: a register");
        let mut into = [0; 8];
        let copied = mapping.read_slice(offset, &mut into).map_err(|e| (e.done, e.error));
        assert_eq!(copied, load.map(drop).map_err(|e| (0, e)), "{what}: a copy");
        let store = if rights == Prot::ReadWrite { Ok(()) } else { Err(refused) };
        assert_eq!(mapping.write(offset, SECRET), store, "{what}");
        assert_eq!(mapping.try_write(offset, SECRET), store, "{what}: on the caller's behalf");
        let exchanged = mapping.compare_exchange(offset, SECRET, SECRET).map(drop);
        assert_eq!(exchanged, store, "{what}: an atomic");
        let filled = mapping.write_slice(offset, &SECRET.to_le_bytes()).map_err(|e| (e.done, e.error));
        assert_eq!(filled, store.map_err(|e| (0, e)), "{what}: a copy");
    }
}

/// Loads, stores and system calls reach nothing. Accesses that would wait under Block are not tried.
fn check_refused(region: &Region, mapping: &Mapping, page: usize, what: &str) {
    for nth in 0..mapping.len() / page {
        let at = addr(mapping) + nth * page;
        let what = format!("{what}, page {nth}");
        if mapping.on_disabled() != OnDisabled::Block {
            assert_ne!(raw::load64(at), Ok(SECRET), "{what} is reached");
            let _ = raw::store64(at, 1);
        }
        let _ = raw::read_into(at, &[1; 8]);
        let mut into = [0_u8; 8];
        let me = nix::unistd::getpid().as_raw();
        if raw::read_process(me, at, &mut into).is_ok() {
            assert_ne!(into, SECRET.to_le_bytes(), "{what}: process_vm_readv");
        }
        if !region.owner().is_empty() {
            assert_eq!(region.owner().read::<u64>(mapping.offset() + nth * page), Ok(SECRET), "{what} was stored to");
        }
    }
}

#[test]
fn the_rights_that_the_crate_was_told_stay_through_revocations() {
    support::start();
    every_case(|case| {
        let page = case.page();
        let (region, mapping) = split(case, case.options());
        let other = case.map(&region);
        // Under Zap a userfaultfd for user-mode faults is enough, because these are loads and stores.
        check_raw(&mapping, page, RIGHTS, &format!("{case} before"));
        for round in 0..3 {
            let what = format!("{case} round {round}");
            region.disable().expect("it revokes");
            check_refused(&region, &mapping, page, &what);
            check_refused(&region, &other, page, &what);
            region.enable().expect("it comes back");
            check_raw(&mapping, page, RIGHTS, &what);
            check_raw(&other, page, [Prot::ReadWrite; 4], &what);
            region.reset(|_| ()).expect("it resets");
            check_raw(&mapping, page, RIGHTS, &format!("{what} after a reset"));
        }
        check_accessors(&mapping, page, RIGHTS, &format!("{case}"));
        assert_eq!(region.stats().degraded, 0, "{case}");
    });
}

#[test]
fn rights_may_be_changed_in_every_state() {
    support::start();
    every_case(|case| {
        let page = case.page();
        let (region, mapping) = split(case, case.options());
        let all = [Prot::ReadWrite; 4];
        let none = [Prot::None; 4];
        let others = [Prot::None, Prot::ReadWrite, Prot::ReadWrite, Prot::Read];
        protect_all(&mapping, page, all);
        check_raw(&mapping, page, all, &format!("{case} given back"));
        check_accessors(&mapping, page, all, &format!("{case} given back"));
        // While disabled: the page tables that Detach has moved aside have the rights of before.
        for rights in [others, none, all, RIGHTS] {
            let what = format!("{case} {rights:?} while disabled");
            region.disable().expect("it revokes");
            protect_all(&mapping, page, rights);
            check_refused(&region, &mapping, page, &what);
            region.enable().expect("it comes back");
            check_raw(&mapping, page, rights, &what);
        }
        for rights in [others, all, RIGHTS] {
            region.reset(|_| protect_all(&mapping, page, rights)).expect("it resets");
            check_raw(&mapping, page, rights, &format!("{case} {rights:?} during a reset"));
        }
        assert_eq!(region.stats().degraded, 0, "{case}");
        drop(region);
        protect_all(&mapping, page, all);
        assert!(addr(&mapping) != 0 && raw::load64(addr(&mapping)) != Ok(SECRET), "{case}: a dropped region");
    });
}

#[test]
fn mappings_for_accessors_only_have_rights_too() {
    support::start();
    every_case(|case| {
        let page = case.page();
        let (region, mapping) = split(case, case.options().accessors_only());
        for round in 0..2 {
            check_accessors(&mapping, page, RIGHTS, &format!("{case} round {round}"));
            region.disable().expect("it revokes");
            if case.policy == OnDisabled::Sigbus {
                for offset in [0, page, 2 * page] {
                    let refused = Err(AccessError::Disabled { offset });
                    assert_eq!(mapping.read::<u64>(offset), refused, "{case}: disabled, whatever its rights");
                }
            }
            region.enable().expect("it comes back");
        }
        assert_eq!(region.stats().degraded, 0, "{case}");
    });
}

#[test]
fn a_read_only_mapping_is_given_no_right_to_write() {
    support::start();
    every_case(|case| {
        let region = case.region(2);
        let page = case.page();
        let mapping = region.map(case.options().read_only()).expect("it maps");
        region.owner().write(0, SECRET).expect("the owner writes");
        assert_eq!(mapping.protect(0..page, Prot::ReadWrite), Err(ProtectError::ReadOnly), "{case}");
        mapping.protect(0..page, Prot::None).expect("fewer");
        assert_eq!(mapping.read::<u64>(0), Err(AccessError::Protected { offset: 0 }), "{case}");
        mapping.protect(0..page, Prot::Read).expect("as many as it had");
        for _ in 0..2 {
            assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}");
            assert_eq!(mapping.write(0, 1_u64), Err(AccessError::ReadOnly { offset: 0 }), "{case}");
            region.disable().expect("it revokes");
            region.enable().expect("it comes back");
        }
    });
}

/// Foreign rights last until the next change, told rights stay, and the mapping is revoked with both.
#[test]
fn foreign_rights_come_and_go_and_leave_what_was_told() {
    support::start();
    every_case(|case| {
        let page = case.page();
        let (region, mapping) = split(case, case.options());
        for round in 0..2 {
            let what = format!("{case} round {round}");
            raw::protect(addr(&mapping), mapping.len(), libc::PROT_READ | libc::PROT_WRITE).expect("ours");
            region.disable().expect("it revokes");
            check_refused(&region, &mapping, page, &what);
            raw::protect(addr(&mapping) + page, 2 * page, libc::PROT_READ | libc::PROT_WRITE).expect("ours");
            check_refused(&region, &mapping, page, &what);
            region.enable().expect("it comes back");
            check_raw(&mapping, page, RIGHTS, &what);
        }
    });
}

/// While the range is still one mapping, Detach moves its page tables aside together with the foreign rights.
#[test]
fn foreign_rights_of_a_whole_mapping_last_until_it_comes_back() {
    support::start();
    every_case(|case| {
        let page = case.page();
        let (region, mapping) = split(case, case.options());
        protect_all(&mapping, page, [Prot::ReadWrite; 4]);
        for foreign in [libc::PROT_READ, libc::PROT_NONE] {
            let what = format!("{case} {foreign}");
            raw::protect(addr(&mapping), mapping.len(), foreign).expect("ours");
            region.disable().expect("it revokes");
            check_refused(&region, &mapping, page, &what);
            raw::protect(addr(&mapping), mapping.len(), foreign).expect("ours");
            region.enable().expect("it comes back");
            check_raw(&mapping, page, [Prot::ReadWrite; 4], &what);
            raw::protect(addr(&mapping), mapping.len(), foreign).expect("ours");
            region.reset(|_| ()).expect("it resets");
            check_raw(&mapping, page, [Prot::ReadWrite; 4], &format!("{what}: a reset"));
        }
        assert_eq!(region.stats().degraded, 0, "{case}");
    });
}

struct Counts(AtomicUsize);

impl Iommu for Counts {
    fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn unmap(&self, _: u64, _: usize) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_part_without_rights_is_not_mapped_for_dma() {
    const IOVA: u64 = 1 << 32;
    support::start();
    every_case(|case| {
        let page = case.page();
        let (region, mapping) = split(case, case.options());
        let iommu = Arc::new(Counts(AtomicUsize::new(0)));
        let space = DmaSpace::new(Arc::clone(&iommu) as _);
        let map = |from: usize, to: usize, access| {
            let segment = DmaSegment::device(&mapping, from * page..to * page);
            space.map(IOVA, &[segment], access).map_err(|e| e.errno())
        };
        let refused = Err(Errno::EFAULT as i32);
        for _ in 0..2 {
            for (from, to) in [(1, 2), (0, 2), (1, 3), (0, 4)] {
                for access in [DmaAccess::Read, DmaAccess::ReadWrite] {
                    assert_eq!(map(from, to, access), refused, "{case}: pages {from}..{to}, {access:?}");
                }
            }
            assert_eq!(map(2, 3, DmaAccess::ReadWrite), refused, "{case}: read-only");
            for (from, to, access) in [
                (2, 3, DmaAccess::Read),
                (2, 4, DmaAccess::Read),
                (3, 4, DmaAccess::ReadWrite),
                (0, 1, DmaAccess::Read),
            ] {
                assert_eq!(map(from, to, access), Ok(()), "{case}: pages {from}..{to}, {access:?}");
                assert_eq!(iommu.0.load(Ordering::SeqCst), 1, "{case}");
                region.disable().expect("it revokes");
                assert_eq!(iommu.0.load(Ordering::SeqCst), 0, "{case}: mapped for DMA while disabled");
                region.enable().expect("it comes back");
                assert_eq!(iommu.0.load(Ordering::SeqCst), 1, "{case}: it comes back");
                assert_eq!(space.unmap(IOVA, 4 * page), (to - from) * page, "{case}");
            }
            assert_eq!(iommu.0.load(Ordering::SeqCst), 0, "{case}");
            region.disable().expect("it revokes");
            region.enable().expect("it comes back");
        }
    });
}

/// Regression: at a real BAR, whose offsets in /proc/self/maps are not those in its file, the parts of a split mapping
/// were not found, and stayed. This test uses a file on disk, from its fifth page on, with each page a part of its own.
#[test]
fn each_part_of_a_split_device_is_revoked_and_restored() {
    const PAGES: usize = 16;
    const PAGE: usize = 4096;
    support::start();
    let dir = std::env::temp_dir();
    for on_revoke in [OnRevoke::Keep, OnRevoke::Drop] {
        for policy in POLICIES {
            let what = format!("{on_revoke:?} {policy:?}");
            let fd = file_in(&dir.to_string_lossy(), (4 + PAGES) * PAGE);
            let file = std::fs::File::from(fd.try_clone().expect("a descriptor"));
            for page in 0..4 + PAGES {
                let at = (page * PAGE) as u64;
                std::os::unix::fs::FileExt::write_all_at(&file, &SECRET.to_le_bytes(), at).expect("it takes them");
            }
            let backing = Backing::File { fd, offset: 4 * PAGE as u64, device: Some(on_revoke) };
            let region = Region::builder(PAGES * PAGE).backing(backing).build().expect("it builds");
            let options = MapOptions::new().offset(2 * PAGE).on_disabled(policy);
            let Ok(mapping) = region.map(options) else {
                assert_eq!(policy, OnDisabled::Block, "only waiting may be impossible");
                continue;
            };
            let pages = mapping.len() / PAGE;
            let told = |nth: usize| [Prot::ReadWrite, Prot::Read, Prot::None][nth % 3];
            for nth in 0..pages {
                mapping.protect(nth * PAGE..(nth + 1) * PAGE, told(nth)).expect("inside");
            }
            for round in 0..3 {
                let what = format!("{what} round {round}");
                for nth in 0..pages {
                    let load = raw::load64(addr(&mapping) + nth * PAGE).ok();
                    assert_eq!(load, (told(nth) != Prot::None).then_some(SECRET), "{what}, page {nth}");
                }
                // Foreign code changes rights and unmaps pages meanwhile.
                raw::protect(addr(&mapping) + round * PAGE, PAGE, libc::PROT_READ).expect("ours");
                raw::unmap(addr(&mapping) + (8 + round) * PAGE, PAGE).expect("ours");
                region.disable().expect("it revokes");
                check_refused(&region, &mapping, PAGE, &what);
                let mut word = [0; 8];
                for page in 0..4 + PAGES {
                    let at = (page * PAGE) as u64;
                    std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, at).expect("it can be read");
                    assert_eq!(word, SECRET.to_le_bytes(), "{what}: a store got into the file");
                }
                if on_revoke == OnRevoke::Drop {
                    region.supply(file.try_clone().expect("a descriptor").into()).expect("it has none");
                }
                region.enable().expect("it comes back");
            }
            drop(region);
            for nth in 0..pages {
                assert_ne!(
                    raw::load64(addr(&mapping) + nth * PAGE),
                    Ok(SECRET),
                    "{what}: a dropped region, page {nth}"
                );
            }
        }
    }
}
