//! A device that is dropped on revocation, and comes back as another one.

use crate::support;
use nix::sys::memfd::{MFdFlags, memfd_create};
use revocable_mmio::{Backing, MapOptions, OnDisabled, OnRevoke, Region, Support};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// A memfd that stands for a device whose first register reads `id`.
fn device(id: u64) -> OwnedFd {
    let file = std::fs::File::from(memfd_create(c"fake-device", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.set_len(1 << 20).expect("it can grow");
    file.write_all_at(&id.to_ne_bytes(), 0).expect("there is room");
    file.into()
}

fn mapped_devices() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is /proc");
    maps.lines().filter(|line| line.contains("fake-device")).count()
}

#[test]
fn nothing_of_a_dropped_device_stays_and_the_supplied_one_takes_its_place() {
    support::start();
    for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block] {
        if policy == OnDisabled::Block && !Support::current().userfaultfd() {
            support::skip("nothing waits without a userfaultfd", support::at_its_best());
            continue;
        }
        let backing = Backing::File { fd: device(7), offset: 0, device: Some(OnRevoke::Drop) };
        let region = Region::builder(1 << 20).backing(backing).build().expect("a region");
        let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("it maps");
        assert_eq!(mapping.read::<u64>(0), Ok(7), "{policy:?}");
        region.reset(|_| ()).expect("nothing is in the way");
        assert_eq!(mapping.read::<u64>(0), Ok(7), "{policy:?}");
        region.disable().expect("nothing is in the way");
        assert_eq!(mapped_devices(), 0, "{policy:?}");
        region.supply(device(9)).expect("it has none");
        assert!(region.supply(device(8)).is_err(), "it has one: handed back");
        region.enable().expect("it has a file again");
        assert_eq!(mapping.read::<u64>(0), Ok(9), "{policy:?}");
        assert_eq!(region.stats().degraded, 0, "{policy:?}");
    }
}
