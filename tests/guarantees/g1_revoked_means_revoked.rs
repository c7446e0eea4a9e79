//! G1: once `disable()` has returned, nothing reaches the memory through any mapping until `enable()`.

use crate::support;
use crate::support::addr;
use crate::support::count::mappings_of;
use crate::support::forking;
use crate::support::matrix::{STRATEGIES, every_case, every_case_with};
use crate::support::raw::{self, Hit};
use crate::support::{a_moment, eventually};
use nix::errno::Errno;
use revocable_mmio::{AccessError, MapOptions, OnDisabled, Region, Strategy, Support};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

#[test]
fn every_raw_load_and_store_gets_sigbus_at_its_exact_byte() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(3);
        let mapping = case.map(&region);
        region.owner().fill(0, 0xa5, region.len()).expect("the owner writes");
        let base = addr(&mapping);
        assert_eq!(raw::load8(base + 5), Ok(0xa5), "{case}");
        assert!(region.disable().expect("it revokes"), "{case}");
        let last = region.len() - 8;
        for offset in [0, 8, 0x7f8, 4096, last] {
            let at = base + offset;
            assert_eq!(raw::load64(at), Err(Hit::bus(at)), "{case} {offset:#x}");
            assert_eq!(raw::load32(at + 4), Err(Hit::bus(at + 4)), "{case} {offset:#x}");
            assert_eq!(raw::load16(at + 2), Err(Hit::bus(at + 2)), "{case} {offset:#x}");
            assert_eq!(raw::load8(at + 7), Err(Hit::bus(at + 7)), "{case} {offset:#x}");
            assert_eq!(raw::store64(at, 1), Err(Hit::bus(at)), "{case} {offset:#x}");
            assert_eq!(raw::store32(at + 4, 1), Err(Hit::bus(at + 4)), "{case} {offset:#x}");
            assert_eq!(raw::store16(at + 2, 1), Err(Hit::bus(at + 2)), "{case} {offset:#x}");
            assert_eq!(raw::store8(at + 7, 1), Err(Hit::bus(at + 7)), "{case} {offset:#x}");
        }
        assert!(!region.disable().expect("twice is fine"), "{case}");
        assert!(region.enable().expect("it comes back"), "{case}");
        for offset in [0, 4096, last] {
            assert_eq!(raw::load64(base + offset), Ok(0xa5a5_a5a5_a5a5_a5a5), "{case}: no refused store got through");
        }
        assert_eq!(region.stats().degraded, 0, "{case}");
    });
}

#[test]
fn accessors_are_refused_and_change_nothing() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        mapping.write(8, SECRET).expect("enabled");
        region.disable().expect("it revokes");
        let refused = AccessError::Disabled { offset: 8 };
        assert_eq!(mapping.read::<u64>(8), Err(refused), "{case}");
        assert_eq!(mapping.try_read::<u64>(8), Err(refused), "{case}");
        assert_eq!(mapping.write(8, 0u64), Err(refused), "{case}");
        assert_eq!(mapping.try_write(8, 0u64), Err(refused), "{case}");
        assert_eq!(mapping.compare_exchange(8, SECRET, 0), Err(refused), "{case}");
        assert_eq!(mapping.fetch_or(8, u64::MAX), Err(refused), "{case}");
        assert_eq!(mapping.fetch_and(8, 0u64), Err(refused), "{case}");
        let mut into = [0x11; 16];
        let slice = mapping.read_slice(0, &mut into).expect_err("disabled");
        assert_eq!((slice.done, into), (0, [0x11; 16]), "{case}: nothing was copied");
        assert_eq!(mapping.write_slice(0, &[0; 16]).expect_err("disabled").done, 0, "{case}");
        assert_eq!(mapping.fill(0, 0, 16).expect_err("disabled").done, 0, "{case}");
        region.enable().expect("it comes back");
        assert_eq!(mapping.read::<u64>(8), Ok(SECRET), "{case}");
    });
}

#[test]
fn system_calls_get_efault_and_partial_ones_are_short() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        mapping.write(0, SECRET).expect("enabled");
        // With a userfaultfd for user-mode faults only (Zap), a system call gets EFAULT at pages that no load has
        // mapped yet.
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
        assert_eq!(raw::write_from(base, 8), Ok(8), "{case}");
        region.disable().expect("it revokes");
        assert_eq!(raw::write_from(base, 8), Err(Errno::EFAULT), "{case}: write(2)");
        assert_eq!(raw::write_pipe_from(base, 8), Err(Errno::EFAULT), "{case}: write(2) into a pipe");
        assert_eq!(raw::read_into(base, &[0xff; 8]), Err(Errno::EFAULT), "{case}: read(2)");
        let good = [7u8; 16];
        let pieces = [(good.as_ptr().expose_provenance(), 16), (base, 16)];
        assert_eq!(raw::writev(pieces), Ok(16), "{case}: writev(2) ends where the revoked memory begins");
        let mut into = [0; 8];
        let me = nix::unistd::getpid().as_raw();
        assert_eq!(raw::read_process(me, base, &mut into), Err(Errno::EFAULT), "{case}: process_vm_readv(2)");
        assert_eq!(into, [0; 8], "{case}");
        region.enable().expect("it comes back");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}: read(2) stored nothing");
        assert_eq!(raw::write_from(base, 8), Ok(8), "{case}");
    });
}

#[test]
fn a_thread_in_the_middle_of_a_loop_of_loads_stops() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        let (loads, end) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::SeqCst) {
                    if raw::load64(base).is_ok() {
                        loads.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            for _ in 0..3 {
                let before = loads.load(Ordering::SeqCst);
                eventually("the loop runs", || loads.load(Ordering::SeqCst) > before + 100);
                region.disable().expect("it revokes");
                // A load may have ended before `disable()` and be counted after it.
                let at_most = loads.load(Ordering::SeqCst) + 1;
                thread::sleep(Duration::from_millis(5));
                assert!(loads.load(Ordering::SeqCst) <= at_most, "{case}: loads succeed while disabled");
                region.enable().expect("it comes back");
            }
            end.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn all_mappings_of_all_parts_are_revoked_together() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(4);
        let page = case.page();
        let whole = case.map(&region);
        let part = |from: usize, pages: usize| {
            region.map(case.options().offset(from * page).len(pages * page)).expect("a part maps")
        };
        let mut views = vec![(whole, 0), (part(1, 2), 1), (part(2, 2), 2), (part(3, 1), 3), (part(0, 1), 0)];
        let read_only = region.map(case.options().read_only()).expect("it maps");
        for (i, (view, first)) in views.iter().enumerate() {
            view.write(8 * i, SECRET + i as u64).expect("enabled");
            assert_eq!(region.owner().read::<u64>(first * page + 8 * i), Ok(SECRET + i as u64), "{case}");
        }
        region.disable().expect("it revokes");
        views.push((part(1, 1), 1)); // mapped while disabled
        for (view, _) in &views {
            for at in [addr(view), addr(view) + view.len() - 8] {
                assert_eq!(raw::load64(at), Err(Hit::bus(at)), "{case}");
            }
        }
        let at = addr(&read_only);
        assert_eq!(raw::load64(at), Err(Hit::bus(at)), "{case}");
        assert!(raw::store64(at, 0).expect_err("read-only").is_segv(), "{case}: protection comes first");
        region.enable().expect("it comes back");
        for (i, (view, _)) in views.iter().take(5).enumerate() {
            assert_eq!(raw::load64(addr(view) + 8 * i), Ok(SECRET + i as u64), "{case}");
        }
        assert_eq!(raw::load64(addr(&views[5].0) + 8), Ok(SECRET + 1), "{case}: mapped while disabled");
        assert!(raw::store64(at, 0).expect_err("read-only").is_segv(), "{case}: still read-only");
    });
}

#[test]
fn all_ones_are_read_at_every_width_and_stores_vanish() {
    support::start();
    every_case_with(&[OnDisabled::AllOnes], |case| {
        let region = case.region(3);
        let (mapping, other) = (case.map(&region), case.map(&region));
        let base = addr(&mapping);
        mapping.write(0, SECRET).expect("enabled");
        region.disable().expect("it revokes");
        for offset in [0, 4096, region.len() - 8] {
            let at = base + offset;
            assert_eq!(raw::load64(at), Ok(u64::MAX), "{case}");
            assert_eq!(raw::load32(at + 4), Ok(u32::MAX), "{case}");
            assert_eq!(raw::load16(at + 6), Ok(u16::MAX), "{case}");
            assert_eq!(raw::load8(at + 1), Ok(u8::MAX), "{case}");
            assert_eq!(mapping.read::<u32>(offset), Ok(u32::MAX), "{case}");
            assert_eq!(raw::write_from(at, 8), Ok(8), "{case}: a system call reads ones too");
            assert_eq!(raw::store64(at, 0xbad), Ok(()), "{case}");
            assert_eq!(mapping.write(offset, 0xbadu32), Ok(()), "{case}");
            assert_eq!(raw::load64(addr(&other) + offset), Ok(u64::MAX), "{case}: not in another mapping");
        }
        assert_eq!(raw::read_into(base, &[0xbb; 8]), Ok(8), "{case}");
        assert_eq!(region.owner().read::<u64>(0), Ok(SECRET), "{case}: not in the region");
        assert_eq!(mapping.compare_exchange(0, SECRET, 1), Ok(Err(u64::MAX)), "{case}");
        let mut into = [0; 16];
        mapping.read_slice(region.len() - 32, &mut into).expect("ones");
        assert_eq!(into, [0xff; 16], "{case}");
        region.enable().expect("it comes back");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}: the stores are gone");
        assert_eq!(raw::load64(base + 4096), Ok(0), "{case}: the stores are gone");
        region.disable().expect("it revokes");
        assert_eq!(raw::load64(base), Ok(u64::MAX), "{case}: ones again, not the store of last time");
        assert_eq!(region.stats().degraded, 0, "{case}");
    });
}

#[test]
fn block_waits_for_enable_and_sees_what_the_owner_wrote_meanwhile() {
    support::start();
    require!(Support::current().userfaultfd(), "nothing can wait without a userfaultfd");
    every_case_with(&[OnDisabled::Block], |case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        mapping.write(0, 1u64).expect("enabled");
        region.disable().expect("it revokes");
        assert_eq!(region.stats().degraded, 0, "{case}");
        thread::scope(|scope| {
            let load = scope.spawn(|| raw::load64(base));
            let store = scope.spawn(|| raw::store64(base + 8, 5));
            let accessor = scope.spawn(|| mapping.read::<u64>(0));
            let refused = Err(Errno::EFAULT);
            assert_eq!(raw::read_into(base + 4088, &[9; 8]), refused, "{case}: system calls do not wait");
            a_moment();
            assert!(!load.is_finished() && !store.is_finished() && !accessor.is_finished(), "{case}: all wait");
            assert_eq!(region.owner().read::<u64>(8), Ok(0), "{case}: the waiting store has stored nothing");
            region.owner().write(0, 2u64).expect("the owner writes");
            region.enable().expect("it comes back");
            assert_eq!(load.join().expect("no panic"), Ok(2), "{case}");
            assert_eq!(accessor.join().expect("no panic"), Ok(2), "{case}");
            assert_eq!(store.join().expect("no panic"), Ok(()), "{case}");
            if case.kernel_serves() {
                assert_eq!(raw::read_into(base + 4088, &[9; 8]), Ok(8), "{case}");
                assert_eq!(region.owner().read::<u8>(4095), Ok(9), "{case}");
            }
        });
        assert_eq!(region.owner().read::<u64>(8), Ok(5), "{case}");
    });
}

#[test]
fn a_forked_child_inherits_nothing() {
    support::start();
    every_case(|case| {
        let region = case.builder(2).name("not-for-children").build().expect("it builds");
        let mapping = case.map(&region);
        let base = addr(&mapping);
        let owner = region.owner().as_ptr().expose_provenance();
        mapping.write(0, SECRET).expect("enabled");
        // 1: the child sees the secret through the mapping. 2: through the owner's view. 0: through neither.
        let look = || {
            let sees = |at| i32::from(raw::load64(at).is_ok_and(|value| value == SECRET));
            sees(base) + 2 * sees(owner)
        };
        for step in ["enabled", "disabled", "enabled again"] {
            if step != "enabled" {
                let _ = if step == "disabled" { region.disable() } else { region.enable() }.expect("it changes");
            }
            // Under Block, too, the child of a disabled region must not wait for ever.
            assert_eq!(forking::exit_code(look), 0, "{case} {step}");
        }
    });
}

#[test]
fn a_forked_child_has_none_of_the_page_tables_that_were_moved_aside() {
    support::start();
    for strategy in STRATEGIES {
        let Ok(region) = Region::builder(64 << 10).strategy(strategy).name("aside-probe").build() else { continue };
        let mapping = region.map(MapOptions::new()).expect("it maps");
        mapping.write(0, SECRET).expect("enabled");
        region.disable().expect("it revokes");
        let parents = mappings_of("aside-probe");
        assert!(parents >= 1, "the owner's view at least");
        // The child's own list of mappings, read without allocating.
        let names = forking::exit_code(|| {
            let Ok(fd) =
                nix::fcntl::open(c"/proc/self/maps", nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty())
            else {
                return 99;
            };
            let (mut buffer, mut kept, mut found) = ([0u8; 4096], 0, 0);
            while let Ok(n @ 1..) = nix::unistd::read(&fd, &mut buffer[kept..]) {
                let all = kept + n;
                found += buffer[..all].windows(11).filter(|window| *window == b"aside-probe").count();
                kept = all.min(10);
                buffer.copy_within(all - kept..all, 0);
            }
            i32::try_from(found).unwrap_or(98)
        });
        assert_eq!(names, 0, "{strategy}");
    }
}

#[test]
fn a_region_made_disabled_refuses_until_its_first_enable() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.builder(2).disabled().build().expect("it builds");
        assert!(!region.is_enabled(), "{case}");
        let mapping = case.map(&region);
        let base = addr(&mapping);
        assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{case}");
        region.owner().write(0, SECRET).expect("the owner writes");
        region.enable().expect("it comes");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
    });
}

#[test]
fn revocation_writes_no_line_into_the_kernel_log() {
    support::start();
    let lines = || {
        use std::io::Read;
        use std::os::unix::fs::OpenOptionsExt;
        let nonblock = nix::libc::O_NONBLOCK;
        let mut log = std::fs::File::options().read(true).custom_flags(nonblock).open("/dev/kmsg").ok()?;
        let (mut record, mut about_us) = ([0; 8192], 0);
        let me = std::env::current_exe().ok()?;
        let name: String = me.file_name()?.to_string_lossy().chars().take(15).collect();
        while let Ok(n) = log.read(&mut record) {
            about_us += usize::from(String::from_utf8_lossy(&record[..n]).contains(&name));
        }
        Some(about_us)
    };
    let Some(before) = lines() else { return support::skip("/dev/kmsg is not readable", support::is_root()) };
    every_case(|case| {
        if case.policy == OnDisabled::Block {
            return;
        }
        let region = case.region(2);
        let mapping = case.map(&region);
        region.disable().expect("it revokes");
        let _ = (raw::load64(addr(&mapping)), raw::write_from(addr(&mapping), 8), mapping.read::<u8>(0));
    });
    assert_eq!(lines(), Some(before));
}

#[test]
fn mappings_for_accessors_only_are_revoked_like_others() {
    support::start();
    every_case(|case| {
        if case.strategy != Strategy::Zap {
            return;
        }
        let region = case.region(2);
        let mapping = region.map(case.options().accessors_only()).expect("it maps");
        mapping.write(0, SECRET).expect("enabled");
        assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}");
        region.disable().expect("it revokes");
        if case.policy != OnDisabled::Block {
            let read = mapping.read::<u64>(0);
            assert!(read == Err(AccessError::Disabled { offset: 0 }) || read == Ok(u64::MAX), "{case}: {read:?}");
        }
        assert!(raw::load64(addr(&mapping)).ok() != Some(SECRET), "{case}");
        region.enable().expect("it comes back");
        assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}");
    });
}
