//! A file that somebody else truncates.

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use revocable_mmio::{AccessError, Backing, MapOptions, Region, Strategy, Support};
use std::os::fd::AsFd;

#[test]
fn what_a_truncated_file_still_has_is_read() {
    if !Support::current().userfaultfd() {
        println!("SKIP: no userfaultfd");
        assert!(std::env::var_os("REVOCABLE_CI").is_none_or(|value| value != "1"), "this machine is to run every test");
        return;
    }
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
        assert_eq!(mapping.read::<u64>(8 << 10), Err(AccessError::NoMemory { offset: 8 << 10 }), "{options:?}");
    }
}
