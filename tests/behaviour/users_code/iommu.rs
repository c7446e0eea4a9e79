//! The results and the calls of IOMMUs.

use super::Counts;
use super::{BAR, IOVA, LEN, OFF, PATIENCE};
use crate::support;
use crate::support::watchdog::Watchdog;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{Bar, DmaAccess, DmaSegment, DmaSpace, Iommu, PciDevice, Space};
use revocable_mmio::{MapOptions, Region, ResetGroup};
use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

#[test]
fn a_refused_try_is_felt_by_nobody() {
    support::start();
    let regions = [0; 3].map(|_| Region::builder(LEN).build().expect("it builds"));
    let maps: Vec<_> = regions.iter().map(|region| region.map(MapOptions::new()).expect("it maps")).collect();
    let iommu = Arc::new(Counts::default());
    let space = DmaSpace::new(Arc::clone(&iommu) as _);
    for (iova, mapping) in [1, 2, 3].into_iter().zip(&maps) {
        let segment = DmaSegment::device(mapping, 0..LEN);
        space.map(iova << 32, &[segment], DmaAccess::ReadWrite).expect("enabled");
    }
    let group = ResetGroup::new(&regions);
    let unmaps = || iommu.1.load(SeqCst);
    for (region, mapping) in regions.iter().zip(&maps) {
        let pin = region.pin(0..1, FaultFlags::WAIT).expect("enabled");
        for _ in 0..10 {
            region.try_disable().expect_err("pinned");
            region.try_reset(|_| ()).expect_err("pinned");
            group.try_disable().expect_err("pinned");
            group.try_reset(|_| ()).expect_err("pinned");
        }
        drop(pin);
        assert_eq!(unmaps(), 0, "pinned");
        let (held, drop_it) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                let _access = mapping.try_access().expect("enabled");
                held.wait();
                drop_it.wait();
            });
            held.wait();
            for _ in 0..10 {
                region.try_disable().expect_err("guarded");
                group.try_disable().expect_err("guarded");
            }
            drop_it.wait();
        });
        let access = mapping.try_access().expect("enabled");
        region.disable().expect_err("guarded by this thread");
        group.try_disable().expect_err("guarded by this thread");
        drop(access);
        assert_eq!(unmaps(), 0, "guarded");
    }
    group.try_disable().expect("nothing is in the way");
    assert_eq!(unmaps(), 3);
    group.try_enable().expect("nothing is in the way");
}

#[test]
fn the_iommu_says_what_it_says_and_a_panic_leaves_nothing_behind() {
    support::start();
    struct Refuses(Mutex<Vec<(u64, usize)>>);
    impl Iommu for Refuses {
        fn map(&self, iova: u64, _: *mut u8, len: usize, _: DmaAccess) -> io::Result<()> {
            if iova == IOVA {
                return Err(io::Error::from_raw_os_error(28));
            }
            self.0.lock().expect("a list").push((iova, len));
            panic!("by design")
        }
        fn unmap(&self, iova: u64, len: usize) {
            self.0.lock().expect("a list").retain(|mapped| *mapped != (iova, len));
        }
    }
    let iommu = Arc::new(Refuses(Mutex::default()));
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let space = DmaSpace::new(Arc::clone(&iommu) as _);
    let segment = DmaSegment::device(&mapping, 0..LEN);
    let refused = space.map(IOVA, std::slice::from_ref(&segment), DmaAccess::Read).expect_err("ENOSPC");
    assert!(refused.errno() == 28 && refused.to_string().contains("No space"), "{refused}");
    assert!(space.map(2 * IOVA, &[segment], DmaAccess::Read).is_err());
    assert!(iommu.0.lock().expect("a list").is_empty(), "what panicked was taken out");
    assert_eq!(space.unmap(0, usize::MAX), 0);
}

/// While another thread's revocation waits for a call of this IOMMU, the IOMMU makes calls that wait for that
/// revocation.
#[test]
fn an_iommu_that_a_revocation_waits_for_does_not_wait_for_the_revocation() {
    struct Asks(Mutex<Option<mpsc::SyncSender<()>>>, Arc<PciDevice>, Mutex<Vec<String>>);
    impl Asks {
        fn ask(&self) {
            let Some(inside) = self.0.lock().expect("the channel").take() else { return };
            inside.send(()).expect("the test waits for it");
            // Until the revocation waits for this call.
            thread::sleep(Duration::from_millis(30));
            let region = self.1.region(BAR).expect("memory");
            let answers = [
                format!("{:?}", region.disable()),
                format!("{:?}", region.reset(|_| ())),
                format!("{:?}", self.1.write(Space::Config, 4, &OFF[..])),
                format!("{:?}", region.pin(0..1, FaultFlags::WAIT).map(drop)),
            ];
            self.2.lock().expect("a list").extend(answers);
        }
    }
    impl Iommu for Asks {
        fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
            self.ask();
            Ok(())
        }
        fn unmap(&self, _: u64, _: usize) {
            self.ask();
        }
    }
    support::start();
    let _watchdog = Watchdog::new("an IOMMU", PATIENCE);
    for (unmaps, by_device) in [(false, false), (true, false), (false, true), (true, true)] {
        let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).bar(1, Bar::memory(4096));
        let device = Arc::new(device.build().expect("a device"));
        let mapping = device.map(BAR, MapOptions::new()).expect("it maps");
        let iommu = Arc::new(Asks(Mutex::default(), Arc::clone(&device), Mutex::default()));
        let space = DmaSpace::new(Arc::clone(&iommu) as _);
        let segment = DmaSegment::device(&mapping, 0..4096);
        let (inside, is_inside) = mpsc::sync_channel(0);
        let arm = || *iommu.0.lock().expect("the channel") = Some(inside);
        let map = || space.map(IOVA, std::slice::from_ref(&segment), DmaAccess::ReadWrite);
        if unmaps {
            map().expect("enabled");
        }
        arm();
        thread::scope(|scope| {
            let device = &device;
            let off = scope.spawn(move || {
                is_inside.recv().expect("the call begins");
                match by_device {
                    true => drop(device.write(Space::Config, 4, &OFF[..]).expect("COMMAND")),
                    false => drop(device.region(BAR).expect("memory").disable().expect("nothing is in the way")),
                }
            });
            match unmaps {
                true => assert_eq!(space.unmap(IOVA, 4096), 4096),
                false => drop(map()),
            }
            off.join().expect("it ends");
        });
        let answers = iommu.2.lock().expect("a list");
        assert!(answers[..3].iter().all(|text| text.contains("Reentrant")), "{answers:?}");
        assert_eq!(answers[3], "Ok(())", "the memory is there until the call ends");
        assert!(mapping.read::<u8>(0).is_err());
    }
}
