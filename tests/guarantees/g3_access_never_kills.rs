//! G3: through the crate's accessors a revoked access is an `Err` (or all-ones), never a signal that ends the process.

use crate::support;
use crate::support::matrix::{STRATEGIES, every_case, file_in};
use crate::support::{child, raw, stress_time};
use revocable_mmio::{AccessError, Backing, MapOptions, OnDisabled, Region, Strategy};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

#[test]
fn every_accessor_survives_a_region_that_comes_and_goes() {
    support::start();
    let ended = child::alone(|| {
        let time = stress_time(80);
        every_case(|case| {
            let region = case.region(2);
            let mapping = case.map(&region);
            let end = AtomicBool::new(false);
            thread::scope(|scope| {
                let hammer = |access: &(dyn Fn() + Sync)| {
                    while !end.load(Ordering::Relaxed) {
                        access();
                    }
                };
                let fine = |e: AccessError| {
                    assert!(matches!(e, AccessError::Disabled { .. } | AccessError::WouldBlock { .. }), "{case}: {e}");
                };
                let mapping = &mapping;
                scope.spawn(move || {
                    hammer(&|| {
                        mapping.read::<u8>(3).map(drop).unwrap_or_else(fine);
                        mapping.read::<u16>(2).map(drop).unwrap_or_else(fine);
                        mapping.read::<u32>(4).map(drop).unwrap_or_else(fine);
                        mapping.read::<u64>(8).map(drop).unwrap_or_else(fine);
                        mapping.try_read::<f64>(16).map(drop).unwrap_or_else(fine);
                        let mut into = [0; 300];
                        mapping.read_slice(4000, &mut into).unwrap_or_else(|e| fine(e.error));
                    });
                });
                scope.spawn(move || {
                    hammer(&|| {
                        mapping.write(3, 1u8).unwrap_or_else(fine);
                        mapping.write(32, 1.5f32).unwrap_or_else(fine);
                        mapping.try_write(40, u64::MAX).unwrap_or_else(fine);
                        mapping.write_slice(4000, &[5; 300]).unwrap_or_else(|e| fine(e.error));
                        mapping.fill(100, 6, 5000).unwrap_or_else(|e| fine(e.error));
                        mapping.compare_exchange(64, 0u32, 1).map(drop).unwrap_or_else(fine);
                        mapping.fetch_or(72, 1u64).map(drop).unwrap_or_else(fine);
                        mapping.fetch_and(72, !1u64).map(drop).unwrap_or_else(fine);
                    });
                });
                let since = Instant::now();
                while since.elapsed() < time {
                    region.disable().expect("it revokes");
                    region.enable().expect("it comes back");
                }
                end.store(true, Ordering::Relaxed);
            });
        });
    });
    ended.well();
}

#[test]
fn a_truncated_file_is_an_error_at_an_enabled_region() {
    support::start();
    for strategy in STRATEGIES {
        let file: File = file_in("/dev/shm", 64 << 10).into();
        let backing = Backing::file(file.as_fd(), 0).expect("descriptors are left");
        let Ok(region) = Region::builder(64 << 10).backing(backing).strategy(strategy).build() else { continue };
        let mapping = region.map(MapOptions::new()).expect("it maps");
        mapping.write(32 << 10, 5u64).expect("enabled");
        file.set_len(4096).expect("not sealed, on purpose");
        let gone = AccessError::NoMemory { offset: 32 << 10 };
        assert_eq!(mapping.read::<u64>(32 << 10), Err(gone), "{strategy}");
        assert_eq!(mapping.write(32 << 10, 1u64), Err(gone), "{strategy}");
        assert_eq!(mapping.try_read::<u64>(32 << 10), Err(gone), "{strategy}");
        assert!(region.owner().read::<u64>(32 << 10).is_err(), "{strategy}");
        assert_eq!(mapping.read::<u64>(0), Ok(0), "{strategy}: the rest of it works");
        assert!(region.disable().expect("it revokes"), "{strategy}");
        assert!(mapping.read::<u64>(0).is_err(), "{strategy}");
        assert!(region.enable().expect("it comes back"), "{strategy}");
        assert_eq!(mapping.read::<u64>(0), Ok(0), "{strategy}");
    }
}

/// A full tmpfs gives no page for a hole: an error for accessors, and SIGBUS for other accesses, as without this crate.
/// No access repeats for ever.
#[test]
fn a_hole_that_cannot_be_filled_is_an_error_and_no_endless_loop() {
    support::start();
    require!(support::is_root(), "mounting a small tmpfs needs root");
    let ended = child::alone(|| {
        use nix::libc;
        let dir = format!("{}/revocable-full-{}", std::env::temp_dir().display(), std::process::id());
        std::fs::create_dir(&dir).expect("a directory");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs", &dir])
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            let _ = std::fs::remove_dir(&dir);
            return support::skip("a tmpfs cannot be mounted here", false);
        }
        let file = File::options().read(true).write(true).create_new(true).open(format!("{dir}/file"));
        let file = file.expect("a file");
        file.set_len(1 << 20).expect("sparse");
        let fds: Vec<_> = STRATEGIES.iter().map(|_| file.try_clone().expect("descriptors are left")).collect();
        drop(file);
        // The file system is gone once this process has ended.
        assert!(std::process::Command::new("umount").args(["-l", &dir]).status().is_ok_and(|s| s.success()));
        std::fs::remove_dir(&dir).expect("unmounted");
        for (strategy, fd) in STRATEGIES.into_iter().zip(fds) {
            let backing = Backing::File { fd: fd.into(), offset: 0, device: None };
            let Ok(region) = Region::builder(1 << 20).backing(backing).strategy(strategy).build() else { continue };
            let mapping = region.map(MapOptions::new()).expect("it maps");
            let refused = (0..256).find_map(|page| mapping.write(page * 4096, 1u64).err());
            assert!(matches!(refused, Some(AccessError::NoMemory { .. })), "{strategy}: {refused:?}");
            let at = mapping.as_ptr().expose_provenance() + (1 << 20) - 4096;
            assert_eq!(raw::store64(at, 1), Err(raw::Hit { signal: libc::SIGBUS, code: 2, addr: at }), "{strategy}");
            assert!(region.disable().expect("it revokes"), "{strategy}");
            assert!(mapping.read::<u64>(0).is_err(), "{strategy}");
            assert!(region.enable().expect("it comes back"), "{strategy}");
            assert_eq!(mapping.read::<u64>(0), Ok(1), "{strategy}");
        }
    });
    ended.well();
}

#[test]
fn a_mapping_that_outlives_its_region_answers_for_ever() {
    support::start();
    every_case(|case| {
        for disabled_before in [false, true] {
            let region = case.region(2);
            let mapping = case.map(&region);
            mapping.write(0, 1u64).expect("enabled");
            if disabled_before {
                region.disable().expect("it revokes");
            }
            drop(region);
            let read = mapping.read::<u64>(0);
            match case.policy {
                OnDisabled::AllOnes => assert!(read == Ok(u64::MAX) || read.is_err(), "{case}: {read:?}"),
                _ => assert_eq!(read, Err(AccessError::Gone { offset: 0 }), "{case}"),
            }
            assert_ne!(raw::load64(mapping.as_ptr().expose_provenance()), Ok(1), "{case}");
        }
    });
}

#[test]
fn strategy_zap_without_a_monitors_help_never_kills_either() {
    support::start();
    let Ok(region) = Region::builder(1 << 20).strategy(Strategy::Zap).build() else {
        return support::skip("Zap is not possible", support::at_its_best());
    };
    let mapping = region.map(MapOptions::new().accessors_only()).expect("it maps");
    for page in 0..256 {
        assert_eq!(mapping.write(page * 4096, page as u64), Ok(()));
    }
    region.disable().expect("it revokes");
    for page in 0..256 {
        assert_eq!(mapping.read::<u64>(page * 4096), Err(AccessError::Disabled { offset: page * 4096 }));
    }
    region.enable().expect("it comes back");
    for page in 0..256 {
        assert_eq!(mapping.read::<u64>(page * 4096), Ok(page as u64));
    }
}
