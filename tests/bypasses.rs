//! G7, ways around: other processes, foreign code in this one, and what the application does to a mapping's range.

#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use nix::errno::Errno;
use nix::libc;
use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, RevokeError, Strategy};
use std::fs;
use std::os::unix::fs::FileExt;
use support::matrix::{Memory, STRATEGIES, every_case, every_case_with};
use support::raw::{self, Hit};
use support::{child, is_root};

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

fn addr(mapping: &Mapping) -> usize {
    mapping.as_ptr().expose_provenance()
}

#[test]
fn another_process_reads_nothing_of_a_disabled_region() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus, OnDisabled::AllOnes], |case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        mapping.write(0, SECRET).expect("enabled");
        raw::load64(base).expect("enabled");
        let me = nix::unistd::getpid().as_raw();
        // 1: it read the secret; 2: it read something else; 0: it was refused.
        let spy = || {
            let mut into = [0; 8];
            match raw::read_process(me, base, &mut into) {
                Ok(8) if into == SECRET.to_le_bytes() => 1,
                Ok(_) => 2,
                Err(_) => 0,
            }
        };
        let ones = case.policy == OnDisabled::AllOnes;
        region.disable().expect("it revokes");
        assert_eq!(raw::forked(spy), if ones { 2 } else { 0 }, "{case}: process_vm_readv");
        let memory = fs::File::open("/proc/self/mem").expect("our own memory");
        let mut into = [0; 8];
        let read = memory.read_at(&mut into, base as u64);
        assert!(read.is_err() || (ones && into == [0xff; 8]), "{case}: /proc/self/mem: {read:?} {into:?}");
        region.enable().expect("it comes back");
        // A userfaultfd for user-mode faults only refuses the kernel's.
        if case.memory != Memory::Device && (case.strategy != Strategy::Zap || case.kernel_waits()) {
            assert_eq!(raw::forked(spy), 1, "{case}: enabled, a debugger may look");
        }
    });
}

#[test]
fn what_mprotect_split_stays_split_and_keeps_its_rights() {
    support::start();
    every_case(|case| {
        let region = case.region(4);
        let page = case.page();
        let mapping = case.map(&region);
        let base = addr(&mapping);
        mapping.write(page, SECRET).expect("enabled");
        raw::protect(base + page, page, libc::PROT_READ).expect("the range is the application's too");
        let check = |when: &str| {
            assert_eq!(raw::load64(base + page), Ok(SECRET), "{case} {when}");
            assert!(raw::store64(base + page, 0).expect_err("read-only").is_segv(), "{case} {when}: rights are kept");
            assert_eq!(raw::store64(base, 1), Ok(()), "{case} {when}");
            assert_eq!(raw::store64(base + 3 * page, 1), Ok(()), "{case} {when}");
        };
        check("before");
        for _ in 0..2 {
            region.disable().expect("it revokes");
            if case.policy != OnDisabled::Block {
                for at in [base, base + page, base + 2 * page] {
                    let load = raw::load64(at);
                    assert!(load == Err(Hit::bus(at)) || load == Ok(u64::MAX), "{case} {at:#x}: {load:?}");
                }
            }
            region.enable().expect("it comes back");
            check("after");
        }
        region.reset(|_| ()).expect("it resets");
        check("after a reset");
    });
}

#[test]
fn a_hole_that_munmap_made_stays_a_hole_and_what_was_put_there_stays_there() {
    support::start();
    every_case(|case| {
        let region = case.region(4);
        let page = case.page();
        let mapping = case.map(&region);
        let base = addr(&mapping);
        mapping.write(0, SECRET).expect("enabled");
        raw::unmap(base + 2 * page, page).expect("the range is the application's too");
        for filled in [false, true] {
            if filled {
                // Somebody else's memory from now on.
                raw::map_if_free(base + 2 * page, page).expect("a hole");
                raw::protect(base + 2 * page, page, libc::PROT_READ | libc::PROT_WRITE).expect("ours");
                raw::store64(base + 2 * page, 77).expect("ours");
            }
            let check = |when: &str| {
                let there = raw::load64(base + 2 * page);
                match filled {
                    true => assert_eq!(there, Ok(77), "{case} {when}: somebody else's memory"),
                    false => assert!(there.expect_err("a hole").is_segv(), "{case} {when}: the hole"),
                }
            };
            region.disable().unwrap_or_else(|e| panic!("{case} filled: {filled}: {e}"));
            check("disabled");
            if case.policy != OnDisabled::Block {
                assert_ne!(raw::load64(base), Ok(SECRET), "{case}: G1 is broken");
            }
            region.enable().expect("it comes back");
            check("enabled");
            assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
            assert_eq!(raw::load64(base + 3 * page), Ok(0), "{case}");
        }
    });
}

#[test]
fn a_locked_mapping_is_revoked_all_the_same() {
    support::start();
    every_case(|case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        mapping.write(0, SECRET).expect("enabled");
        raw::load64(base + case.page()).expect("enabled");
        match raw::lock(base, mapping.len()) {
            Ok(()) => {}
            // The limit on locked memory, or pages that only a userfaultfd for user-mode faults could give.
            Err(e) => return assert!(!is_root() || !case.kernel_waits(), "{case}: mlock: {e}"),
        }
        for _ in 0..2 {
            region.disable().expect("it revokes");
            if case.policy != OnDisabled::Block {
                assert_ne!(raw::load64(base), Ok(SECRET), "{case}");
            }
            region.enable().expect("it comes back");
            assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
        }
    });
}

#[test]
fn mlockall_of_the_future_changes_nothing() {
    support::start();
    require!(is_root(), "mlockall needs a limit on locked memory that is root's");
    let ended = child::alone("mlockall_of_the_future_changes_nothing", || {
        nix::sys::mman::mlockall(nix::sys::mman::MlockAllFlags::MCL_FUTURE).expect("root may");
        every_case(|case| {
            let region = case.region(2);
            let mapping = case.map(&region);
            let base = addr(&mapping);
            mapping.write(0, SECRET).expect("enabled");
            for _ in 0..2 {
                region.disable().unwrap_or_else(|e| panic!("{case}: {e}"));
                if case.policy != OnDisabled::Block {
                    assert_ne!(raw::load64(base), Ok(SECRET), "{case}");
                }
                region.enable().unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}");
                assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
            }
        });
    });
    ended.well();
}

#[test]
fn collapsing_into_huge_pages_opens_nothing() {
    support::start();
    const LEN: usize = 4 << 20;
    const MADV_COLLAPSE: i32 = 25;
    for strategy in STRATEGIES {
        for policy in [OnDisabled::Sigbus, OnDisabled::Block] {
            let Ok(region) = Region::builder(LEN).strategy(strategy).build() else { continue };
            let Ok(mapping) = region.map(MapOptions::new().on_disabled(policy)) else { continue };
            let base = addr(&mapping);
            region.owner().fill(0, 0xa5, LEN).expect("the owner writes");
            raw::load64(base).expect("enabled");
            region.disable().expect("it revokes");
            let collapsed = raw::advise(base, LEN, MADV_COLLAPSE);
            assert!(collapsed.is_err(), "{strategy} {policy:?}: a revoked mapping was collapsed");
            if policy == OnDisabled::Sigbus {
                assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{strategy}");
            } else {
                let resident = support::read_text("/proc/self/smaps");
                let ours = resident.split(&format!("{base:x}-")).nth(1).unwrap_or("");
                let rss = ours.lines().find(|line| line.starts_with("Rss:")).unwrap_or("");
                assert!(rss.contains(" 0 kB"), "{strategy} {policy:?}: pages are mapped: {rss}");
            }
            region.enable().expect("it comes back");
            assert_eq!(raw::load8(base), Ok(0xa5), "{strategy} {policy:?}");
        }
    }
}

/// What this crate does not defend against, pinned down so that the documentation stays true: code in this process that
/// duplicates or moves a live mapping takes a view with it that no revocation knows of.
#[test]
fn foreign_mremap_of_a_live_mapping_is_a_documented_limit_and_harms_no_one_else() {
    support::start();
    for strategy in STRATEGIES {
        let Ok(region) = Region::builder(64 << 10).strategy(strategy).build() else { continue };
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let base = addr(&mapping);
        mapping.write(0, SECRET).expect("enabled");
        let copy = raw::move_away(base, 0, 64 << 10).expect("a shared mapping can be duplicated");
        region.disable().expect("it revokes");
        assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{strategy}: the mapping itself is revoked");
        assert_eq!(raw::load64(copy), Ok(SECRET), "{strategy}: the copy is not (see SECURITY)");
        region.enable().expect("it comes back");
        assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{strategy}");
        raw::unmap(copy, 64 << 10).expect("the copy is ours");

        // Moving a revoked mapping gives nothing away, and what others have put in its place is not touched.
        region.disable().expect("it revokes");
        let moved = raw::move_away(base, 64 << 10, 128 << 10);
        if let Ok(moved) = moved {
            assert_ne!(raw::load64(moved), Ok(SECRET), "{strategy}");
            raw::unmap(moved, 128 << 10).expect("ours");
        }
    }
}

#[test]
fn a_forked_child_can_neither_change_the_parents_mappings_nor_its_own_memory_by_them() {
    support::start();
    every_case(|case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        mapping.write(0, SECRET).expect("enabled");
        let len = mapping.len();
        let mut parts = Some((region, mapping));
        for disabled in [false, true] {
            let (region, mapping) = parts.as_ref().expect("still there");
            if disabled {
                region.disable().expect("it revokes");
            }
            let code = raw::forked(|| {
                // The range is free in the child, and it puts something of its own there. (What covers a disabled
                // range may be inherited: there is nothing in it.)
                let free = raw::map_if_free(base, len).is_ok() && raw::protect(base, len, libc::PROT_READ).is_ok();
                if !free && !disabled {
                    return 1;
                }
                for changed in [region.try_disable(), region.try_enable(), region.try_reset(|_| true)] {
                    if !matches!(changed, Err(RevokeError::Forked) | Ok(false)) {
                        return 2;
                    }
                }
                let own = raw::load64(base);
                if own == Ok(SECRET) || (free && own != Ok(0)) { 3 } else { 0 }
            });
            assert_eq!(code, 0, "{case} disabled: {disabled}");
            if disabled && case.policy == OnDisabled::Sigbus {
                assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{case}: the parent's");
            }
            let _ = mapping.offset();
        }
        // Dropping in the child unmaps nothing of the child's.
        let taken = parts.take();
        if let Some((region, _)) = &taken {
            region.enable().expect("it comes back");
        }
        let code = raw::forked(|| {
            if raw::map_if_free(base, len).is_err() || raw::protect(base, len, libc::PROT_READ).is_err() {
                return 1;
            }
            let (region, mapping) = taken.as_ref().map_or((None, None), |(r, m)| (Some(r), Some(m)));
            // By bitwise copies, since the parent's go on living.
            for _ in [0] {
                if let (Some(region), Some(mapping)) = (region, mapping) {
                    raw::drop_copies(region, mapping);
                }
            }
            if raw::load64(base) == Ok(0) { 0 } else { 4 }
        });
        assert_eq!(code, 0, "{case}: drop");
        let (_region, mapping) = taken.expect("still there");
        assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}: the parent's");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}: the parent's");
    });
}

#[test]
fn descriptors_are_closed_on_exec_and_the_memfd_is_sealed() {
    support::start();
    let ended = child::alone("descriptors_are_closed_on_exec_and_the_memfd_is_sealed", || {
        let region = Region::builder(64 << 10).name("sealed-one").build().expect("it builds");
        let _zap = Region::builder(4096).strategy(Strategy::Zap).build().map(|r| (r.map(MapOptions::new()), r));
        let mapping = region.map(MapOptions::new()).expect("it maps");
        region.disable().expect("it revokes");
        drop(mapping);
        let mut memfds = 0;
        for entry in fs::read_dir("/proc/self/fd").expect("our descriptors").flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let fd: i32 = entry.file_name().to_string_lossy().parse().expect("a number");
            if target.contains("memfd:") || target.contains("userfaultfd") || target.contains("eventfd") {
                let info = support::read_text(format!("/proc/self/fdinfo/{fd}"));
                let flags =
                    info.lines().find_map(|l| l.strip_prefix("flags:")).expect("it has flags").trim().to_owned();
                let flags = i32::from_str_radix(&flags, 8).expect("octal");
                assert!(flags & libc::O_CLOEXEC != 0, "{target} survives exec");
            }
            if target.contains("sealed-one") {
                memfds += 1;
                // Opened anew through /proc, as anybody of this user can: neither shrinks nor grows.
                let again = fs::File::options().write(true).open(entry.path()).expect("it opens");
                for len in [0, 128 << 10] {
                    assert_eq!(again.set_len(len).expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32));
                }
            }
        }
        assert_eq!(memfds, 1, "the region's own");
    });
    ended.well();
}

/// What is shared by a process's regions (the monitor, the refusing userfaultfd) is not shared with its children.
#[test]
fn a_forked_child_makes_regions_of_its_own() {
    support::start();
    let ended = child::alone("a_forked_child_makes_regions_of_its_own", || {
        for strategy in STRATEGIES {
            let make = || {
                let region = Region::builder(64 << 10).strategy(strategy).build().ok()?;
                let mapping = region.map(MapOptions::new()).ok()?;
                let own = region.map(MapOptions::new().accessors_only()).ok()?;
                Some((region, mapping, own))
            };
            let works = |region: &Region, mapping: &Mapping, own: &Mapping, value: u64| {
                mapping.write(0, value).is_ok()
                    && own.read::<u64>(0) == Ok(value)
                    && region.disable().is_ok_and(|changed| changed)
                    && raw::load64(addr(mapping)) == Err(Hit::bus(addr(mapping)))
                    // Not by what the accessors know, but by what is mapped.
                    && raw::load64(addr(own)).is_err()
                    && own.read::<u64>(0).is_err()
                    && region.enable().is_ok_and(|changed| changed)
                    && raw::load64(addr(mapping)) == Ok(value)
                    && own.read::<u64>(0) == Ok(value)
            };
            let Some((region, mapping, own)) = make() else { continue };
            assert!(works(&region, &mapping, &own, SECRET), "{strategy}: the parent's");
            // The other thread of this process is the test harness's, which waits: no lock is held at the fork.
            let code = raw::forked(|| match make() {
                None => 1,
                Some((region, mapping, own)) => i32::from(!works(&region, &mapping, &own, 5)) * 2,
            });
            assert_eq!(code, 0, "{strategy}: the child's");
            assert!(works(&region, &mapping, &own, SECRET), "{strategy}: the parent's, after that");
        }
    });
    ended.well();
}

/// `mremap` unmaps its target before it finds that a limit forbids the rest: the range must not be free then.
#[test]
fn an_address_space_limit_lowered_below_what_is_used_leaves_no_range_free() {
    support::start();
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let ended = child::alone("an_address_space_limit_lowered_below_what_is_used_leaves_no_range_free", || {
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
            assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{strategy}");
            // Revoked the intended way now, so that the intended way back is taken.
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
