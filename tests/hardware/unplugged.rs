//! A device whose driver is unbound, or that is unplugged, while a guest has its BAR.

use crate::rig::{BAR, MEMORY, bind, device_descriptors, rig, sysfs, write};
use crate::support::{self, eventually};
use revocable_mmio::vfio::VfioError;
use revocable_mmio::{AccessError, MapOptions, OnRevoke};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

/// Writes to a file in sysfs in a thread of its own. The write returns when nothing uses the device any more.
fn writes(path: PathBuf, text: &'static str) -> std::thread::JoinHandle<std::io::Result<()>> {
    let writing = std::thread::spawn(move || write(path, text));
    // The kernel asks the device's user and waits, in steps of ten seconds that a closing descriptor cuts short.
    std::thread::sleep(Duration::from_millis(300));
    writing
}

#[test]
fn unbinding_waits_for_a_bar_and_ends_as_soon_as_it_is_dropped() {
    let Some(rig) = rig() else { return };
    for round in 0..3 {
        let opened = rig.open(MEMORY);
        opened.turn(true);
        let bar = opened.device.bar(BAR).expect("it has one").on_revoke(OnRevoke::Drop);
        let bar = bar.build(opened.device.as_fd()).expect("a BAR");
        let region = bar.region().expect("one region");
        let mapping = region.map(MapOptions::new()).expect("a mapping");
        mapping.write(8, 0x1234_u64 + round).expect("on");
        assert!(region.owner().is_empty(), "it would pin the device");
        let by = opened.by;
        // From here on only the region has the device.
        drop(opened.device);
        assert_eq!(device_descriptors(), 1);
        let unbind = writes(PathBuf::from("/sys/bus/pci/drivers/vfio-pci/unbind"), MEMORY);
        assert!(!unbind.is_finished(), "a mapping keeps the device");
        assert_eq!(mapping.read::<u64>(8), Ok(0x1234 + round), "and works");
        region.disable().expect("disable");
        assert_eq!(device_descriptors(), 0, "closed when disable() has returned");
        eventually("the unbinding ends", || unbind.is_finished());
        unbind.join().expect("no panic").expect("unbound");
        assert_eq!(mapping.read::<u64>(8), Err(AccessError::Disabled { offset: 8 }));
        assert!(region.enable().is_err(), "there is no device");
        drop(by);

        // The device comes back, as another file.
        let again = rig.open(MEMORY);
        bar.supply(again.device.as_fd()).expect("it had none");
        assert!(matches!(bar.supply(again.device.as_fd()), Err(VfioError::Supplied)));
        region.enable().expect("enable");
        assert_eq!(mapping.read::<u64>(8), Ok(0x1234 + round), "the same memory behind the same mapping");
        // The region asks the new file.
        again.turn(false);
        assert_eq!(mapping.read::<u64>(8), Err(AccessError::Disabled { offset: 8 }));
        again.turn(true);
        mapping.read::<u64>(8).expect("on");
    }
}

#[test]
fn a_device_that_is_unplugged_leaves_when_its_bar_is_revoked() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    opened.turn(true);
    let bar = opened.device.bar(BAR).expect("it has one").on_revoke(OnRevoke::Drop);
    let bar = bar.build(opened.device.as_fd()).expect("a BAR");
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.write(8, 7_u64).expect("on");
    drop(opened.device);
    let remove = writes(sysfs(MEMORY).join("remove"), "1");
    assert!(!remove.is_finished(), "a mapping keeps the device");
    std::thread::scope(|scope| {
        // A guest that goes on using it meanwhile.
        let user = scope.spawn(|| {
            loop {
                match mapping.read::<u64>(8) {
                    Ok(value) => assert_eq!(value, 7),
                    Err(e) => break e,
                }
            }
        });
        support::a_moment();
        region.disable().expect("disable");
        assert_eq!(user.join().expect("no panic"), AccessError::Disabled { offset: 8 });
    });
    drop(opened.by);
    eventually("the device is gone", || remove.is_finished());
    remove.join().expect("no panic").expect("removed");
    assert!(!sysfs(MEMORY).exists());
    write("/sys/bus/pci/rescan", "1").expect("sysfs");
    eventually("it is plugged in again", || sysfs(MEMORY).exists());
    bind(MEMORY);
    let again = rig.open(MEMORY);
    bar.supply(again.device.as_fd()).expect("it had none");
    region.enable().expect("enable");
    again.turn(true);
    assert_eq!(mapping.read::<u64>(8), Ok(7));
}
