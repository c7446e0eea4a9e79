//! A file that other code truncates.

use crate::support;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use revocable_mmio::{AccessError, Backing, MapOptions, Region, Strategy, Support};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn what_a_truncated_file_still_has_is_read() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    for options in [MapOptions::new(), MapOptions::new().accessors_only()] {
        let file = memfd_create(c"truncated", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        ftruncate(&file, 64 << 10).expect("it can grow");
        let backing = Backing::file(file.as_fd(), 0).expect("a descriptor");
        let region = Region::builder(64 << 10).backing(backing).strategy(Strategy::Zap).build().expect("a region");
        let mapping = region.map(options.clone()).expect("it maps");
        region.owner().write::<u64>(4096, 7).expect("it is there");
        ftruncate(&file, 8 << 10).expect("it can shrink");
        // The window around the fault goes beyond the end.
        assert_eq!(mapping.read::<u64>(4096), Ok(7), "{options:?}");
        for _ in 0..2 {
            let gone = Err(AccessError::NoMemory { offset: 8 << 10 });
            assert_eq!(mapping.read::<u64>(8 << 10), gone, "{options:?}");
            assert_eq!(mapping.try_read::<u64>(8 << 10), gone, "{options:?}");
            assert_eq!(region.owner().read::<u64>(8 << 10), gone, "{options:?}");
            assert_eq!(mapping.read::<u64>(4096), Ok(7), "{options:?}");
            assert_eq!(mapping.try_read::<u64>(4096), Ok(7), "{options:?}");
        }
        ftruncate(&file, 64 << 10).expect("it can grow again");
        assert_eq!(region.owner().write::<u64>(8 << 10, 9), Ok(()), "{options:?}");
        assert_eq!(mapping.read::<u64>(8 << 10), Ok(9), "{options:?}");
    }
}

/// An access that fails has no effect on other accesses.
#[test]
fn beside_accesses_that_fail_others_are_exact() {
    support::start();
    const SECRET: u64 = 0x5ec7_e75e_c7e7_5ec7;
    let file = memfd_create(c"truncated", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    ftruncate(&file, 16 << 10).expect("it can grow");
    let backing = Backing::file(file.as_fd(), 0).expect("a descriptor");
    let region = Region::builder(16 << 10).backing(backing).build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    mapping.write(0, SECRET).expect("enabled");
    ftruncate(&file, 8 << 10).expect("it can shrink");
    let stop = AtomicBool::new(false);
    let added = std::thread::scope(|scope| {
        for at in [8 << 10, 12 << 10, 8 << 10] {
            let (mapping, stop) = (&mapping, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(mapping.read::<u64>(at), Err(AccessError::NoMemory { offset: at }));
                    assert_eq!(mapping.fetch_add(at, 1_u64), Err(AccessError::NoMemory { offset: at }));
                }
            });
        }
        let mut added = 0_u64;
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            assert_eq!(mapping.read::<u64>(0), Ok(SECRET));
            assert_eq!(mapping.fetch_add(4096, 1_u64), Ok(added));
            added += 1;
        }
        stop.store(true, Ordering::Relaxed);
        added
    });
    assert_eq!(region.owner().read::<u64>(4096).expect("it is there"), added);
}
