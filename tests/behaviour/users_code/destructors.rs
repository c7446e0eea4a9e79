//! The destructors of users' objects panic.

use super::{Bomb, IOVA, LEN, PATIENCE, blocking};
use crate::support;
use crate::support::watchdog::Watchdog;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{Bar, DmaAccess, DmaSegment, DmaSpace, Iommu, PciDevice, PortIo};
use revocable_mmio::{FaultQueue, InvalidateNotifier, MapOptions, Monitor, NotifyError, Region, Submitted};
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

/// A notifier, an IOMMU and a memslot adapter whose destructors panic.
struct Explodes(Bomb);

impl InvalidateNotifier for Explodes {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }
}

impl Iommu for Explodes {
    fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: usize) {}
}

impl PortIo for Explodes {
    fn read(&self, _: u64, _: &mut [u8]) {}
    fn write(&self, _: u64, _: &[u8]) {}
}

impl Wake for Explodes {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_destructor_that_panics_ends_nothing() {
    support::start();
    let _watchdog = Watchdog::new("destructors", PATIENCE);
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    drop(region.subscribe(0..LEN, Arc::new(Explodes(Bomb))));
    let bomb = Explodes(Bomb);
    let pin = region.pin(0..1, FaultFlags::WAIT).expect("enabled").on_revoke(move || {
        let _ = &bomb;
    });
    drop(pin.on_revoke(|| ()));
    let space = DmaSpace::new(Arc::new(Explodes(Bomb)));
    space.map(IOVA, &[DmaSegment::device(&mapping, 0..LEN)], DmaAccess::Read).expect("enabled");
    drop(space);
    region.disable().expect("nothing is in the way");
    let queue = FaultQueue::new(8).expect("an eventfd");
    let Ok(Submitted::Queued(mut token)) = region.fault_async(0, blocking(), &queue) else { panic!("it is disabled") };
    let waker = Waker::from(Arc::new(Explodes(Bomb)));
    let _ = std::pin::Pin::new(&mut token).poll(&mut Context::from_waker(&waker));
    std::mem::forget(waker);
    region.enable().expect("nothing is in the way");
    assert_eq!(mapping.read::<u8>(0), Ok(0));
    let ports = Arc::new(Explodes(Bomb));
    let reset = Explodes(Bomb);
    let device = PciDevice::builder(1, 2).bar(0, Bar::io(16, ports)).on_reset(move |_, _| {
        let _ = &reset;
        Ok(())
    });
    drop(device.build().expect("a device"));
    let monitor = Monitor::with_threads(1);
    if let Ok(monitor) = monitor {
        let bomb = Explodes(Bomb);
        monitor.on_thread_start(move || {
            let _ = &bomb;
        });
        monitor.on_thread_start(|| ());
    }
}
