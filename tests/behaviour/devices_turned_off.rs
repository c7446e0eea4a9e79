//! Devices that turn their memory off by themselves, as the kernel's vfio-pci does, while the region is enabled. Here a file
//! that is cut off stands for the device: an access of it faults in the same way. `tests/hardware` has the real ones.

use crate::support::{self, eventually};
use nix::sys::memfd::{MFdFlags, memfd_create};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{AccessError, Backing, MapOptions, OnDisabled, OnRevoke, PinError, Region};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const LEN: usize = 16 << 10;

struct Device {
    file: File,
    on: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Device {
    fn new() -> Self {
        let file = File::from(memfd_create(c"device", MFdFlags::empty()).expect("a memfd"));
        let device = Self { file, on: Arc::default(), asked: Arc::default() };
        device.turn(true);
        device
    }

    /// Off: the memory goes first, as the real one's does. On: it comes back first.
    fn turn(&self, on: bool) {
        self.file.set_len(if on { LEN as u64 } else { 0 }).expect("its size");
        self.on.store(on, Ordering::SeqCst);
    }

    fn region(&self, on_revoke: OnRevoke) -> Region {
        let fd = self.file.try_clone().expect("a descriptor").into();
        let (on, asked) = (Arc::clone(&self.on), Arc::clone(&self.asked));
        let builder = Region::builder(LEN).backing(Backing::File { fd, offset: 0, device: Some(on_revoke) });
        let builder = builder.memory_enabled(move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            on.load(Ordering::SeqCst)
        });
        builder.build().expect("a region")
    }
}

#[test]
fn accesses_of_a_device_that_is_off_get_what_the_policy_says() {
    support::start();
    for on_revoke in [OnRevoke::Keep, OnRevoke::Drop] {
        let device = Device::new();
        let region = device.region(on_revoke);
        for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block] {
            let options = MapOptions::new().on_disabled(policy).accessors_only();
            let mapping = region.map(options).expect("a mapping");
            mapping.write(8, 7_u32).expect("it is on");
            device.turn(false);
            let refused = region.stats().refused;
            let mut bytes = [0; 8];
            if policy == OnDisabled::AllOnes {
                assert_eq!(mapping.read::<u32>(8), Ok(u32::MAX));
                assert_eq!(mapping.write(8, 1_u32), Ok(()));
                assert_eq!(mapping.fetch_add(8, 1_u64), Ok(u64::MAX));
                assert_eq!(mapping.try_read::<u16>(8), Ok(u16::MAX));
                assert_eq!(mapping.try_write(8, 1_u16), Ok(()));
                assert_eq!(mapping.read_slice(4, &mut bytes), Ok(()));
                assert_eq!(bytes, [0xff; 8]);
                assert_eq!(mapping.write_slice(4, &bytes), Ok(()));
                assert_eq!(mapping.fill(4, 1, 8), Ok(()));
            } else {
                let gone = AccessError::Disabled { offset: 8 };
                assert_eq!(mapping.read::<u32>(8), Err(gone));
                assert_eq!(mapping.write(8, 1_u32), Err(gone));
                assert_eq!(mapping.fetch_add(8, 1_u64), Err(gone));
                assert_eq!(mapping.try_read::<u16>(8), Err(gone));
                assert_eq!(mapping.try_write(8, 1_u16), Err(gone));
                assert_eq!(mapping.read_slice(8, &mut bytes).map_err(|e| (e.done, e.error)), Err((0, gone)));
                assert_eq!(mapping.write_slice(8, &bytes).map_err(|e| (e.done, e.error)), Err((0, gone)));
                assert_eq!(mapping.fill(8, 1, 8).map_err(|e| (e.done, e.error)), Err((0, gone)));
            }
            assert!(region.stats().refused > refused, "refusals are counted");
            let pinned = region.pin(0..LEN, FaultFlags::WAIT).map(drop);
            assert_eq!(pinned, Err(PinError::Disabled));
            assert_eq!(region.stats().pins, 0);
            device.turn(true);
            assert_eq!(mapping.read::<u32>(8), Ok(0), "a file that was cut off has lost its content");
            region
                .pin(0..LEN, FaultFlags::WAIT)
                .map(drop)
                .or_else(|e| match (on_revoke, e) {
                    // No owner's view, no address.
                    (OnRevoke::Drop, PinError::NoMemory(_)) => Ok(()),
                    (_, e) => Err(e),
                })
                .expect("a pin");
        }
    }
}

/// An access that does not recover asks before it is made, and ends the process if the answer was wrong.
#[test]
#[cfg(not(revocable_portable))]
fn it_is_asked_only_after_an_access_that_failed_at_an_enabled_region() {
    support::start();
    let device = Device::new();
    let region = device.region(OnRevoke::Keep);
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.write(0, 1_u8).expect("it is on");
    region.disable().expect("disable");
    device.turn(false);
    assert_eq!(mapping.read::<u8>(0), Err(AccessError::Disabled { offset: 0 }));
    region.enable().expect("it can be mapped while it is off");
    assert_eq!(device.asked.load(Ordering::SeqCst), 0);
    assert_eq!(mapping.read::<u8>(0), Err(AccessError::Disabled { offset: 0 }));
    assert_eq!(device.asked.load(Ordering::SeqCst), 1);
    // The device says that it is on, and has no memory: the file was cut off by another hand.
    device.on.store(true, Ordering::SeqCst);
    assert_eq!(mapping.read::<u8>(0), Err(AccessError::NoMemory { offset: 0 }));
    assert_eq!(mapping.try_read::<u8>(0), Err(AccessError::NoMemory { offset: 0 }));
}

/// As above.
#[test]
#[cfg(not(revocable_portable))]
fn a_question_that_panics_or_uses_its_region_ends_in_an_error() {
    support::start();
    let file = File::from(memfd_create(c"device", MFdFlags::empty()).expect("a memfd"));
    static REGION: std::sync::OnceLock<Region> = std::sync::OnceLock::new();
    static CHANGED: AtomicUsize = AtomicUsize::new(0);
    file.set_len(LEN as u64).expect("its size");
    let fd = file.try_clone().expect("a descriptor").into();
    let builder = Region::builder(LEN).backing(Backing::File { fd, offset: 0, device: Some(OnRevoke::Keep) });
    let region = builder.memory_enabled(|_| {
        let changed = REGION.get().expect("it was made").disable();
        assert!(changed.is_err(), "it would wait for its own access");
        CHANGED.fetch_add(1, Ordering::SeqCst);
        panic!("as users' code may");
    });
    let region = REGION.get_or_init(|| region.build().expect("a region"));
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    file.set_len(0).expect("its size");
    assert_eq!(mapping.read::<u8>(0), Err(AccessError::NoMemory { offset: 0 }));
    assert!(CHANGED.load(Ordering::SeqCst) > 0);
}

/// The device is free when the revocation has returned, even if a thread was asking it.
#[test]
fn a_revocation_that_drops_the_device_waits_for_a_question() {
    support::start();
    let file = File::from(memfd_create(c"device", MFdFlags::empty()).expect("a memfd"));
    let asking = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicBool::new(false));
    let fd = file.try_clone().expect("a descriptor").into();
    let builder = Region::builder(LEN).backing(Backing::File { fd, offset: 0, device: Some(OnRevoke::Drop) });
    let (is_asking, has_answered) = (Arc::clone(&asking), Arc::clone(&answered));
    let region = builder.memory_enabled(move |_| {
        is_asking.store(true, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        has_answered.store(true, Ordering::SeqCst);
        false
    });
    let region = region.build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| mapping.read::<u8>(0));
        eventually("it is asked", || asking.load(Ordering::SeqCst));
        region.disable().expect("disable");
        assert!(answered.load(Ordering::SeqCst), "the descriptor was in use");
        assert_eq!(reader.join().expect("no panic"), Err(AccessError::Disabled { offset: 0 }));
    });
}
