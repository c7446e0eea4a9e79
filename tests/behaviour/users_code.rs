//! Users' code runs under no lock of the crate. A trait's method or a closure may panic, drop anything, or call what
//! would have to wait for itself: nothing hangs, and the region works afterwards.

mod destructors;
mod devices;
mod everywhere;
mod formatting;
mod iommu;
mod wakers;

use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{DmaAccess, DmaSpace, Iommu, PciDevice, PortIo, Space};
use revocable_mmio::{Caller, FaultQueue, InvalidateNotifier, Mapping, NotifyError, OnDisabled, Region, ResetGroup};
use std::any::Any;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Wake;
use std::thread;
use std::time::Duration;

const BAR: Space = Space::Bar(0);
const LEN: usize = 64 << 10;
const IOVA: u64 = 1 << 32;
const ON: [u8; 2] = [2, 0];
const OFF: [u8; 2] = [0, 0];
const PATIENCE: Duration = Duration::from_secs(20);

/// The objects that callbacks use: a device of two BARs, and one of each object that it can have.
struct World {
    device: PciDevice,
    mapping: Arc<Mapping>,
    other: Mapping,
    space: Arc<DmaSpace>,
    group: ResetGroup,
    queue: FaultQueue,
    /// Objects that callbacks may drop, or have made.
    dropped: Mutex<Vec<Box<dyn Any + Send + Sync>>>,
}

impl World {
    fn region(&self) -> &Region {
        self.device.region(BAR).expect("memory")
    }
}

/// The code of a user. It gets the world once there is one.
type Does = fn(&World);

/// Runs what it was given at each call, and counts the calls.
#[derive(Default)]
struct Code {
    world: Mutex<Option<Arc<World>>>,
    does: Mutex<Option<Does>>,
    calls: AtomicUsize,
}

impl Code {
    fn run(&self) {
        // No lock of the test is held while it runs.
        let world = self.world.lock().expect("the world").clone();
        let does = *self.does.lock().expect("what it does");
        if let (Some(world), Some(does)) = (world, does) {
            self.calls.fetch_add(1, SeqCst);
            does(&world);
        }
    }
}

/// Panics when it is dropped, unless its thread is panicking already.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("a destructor's, by design");
        }
    }
}

struct Code_(Arc<Code>);

impl InvalidateNotifier for Code_ {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.0.run();
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.0.run();
        Ok(())
    }
}

impl Iommu for Code_ {
    fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
        self.0.run();
        Ok(())
    }

    fn unmap(&self, _: u64, _: usize) {
        self.0.run();
    }
}

impl PortIo for Code_ {
    fn read(&self, _: u64, _: &mut [u8]) {
        self.0.run();
    }

    fn write(&self, _: u64, _: &[u8]) {
        self.0.run();
    }
}

impl Wake for Code_ {
    fn wake(self: Arc<Self>) {
        self.0.run();
    }
}

mod memslots {
    use super::Code_;
    use revocable_mmio::ioeventfd::{IoEvent, SetIoEventFd};
    use revocable_mmio::memslot::{SetMemslot, SlotMemory};
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[expect(unsafe_code, reason = "the trait's own")]
    impl SetMemslot for Code_ {
        // SAFETY: nothing is done with the address.
        unsafe fn install(&self, _: &SlotMemory) -> io::Result<()> {
            self.0.run();
            Ok(())
        }

        fn remove(&self, _: &SlotMemory) -> io::Result<()> {
            self.0.run();
            Ok(())
        }
    }

    impl SetIoEventFd for Code_ {
        fn assign(&self, _: &IoEvent<'_>) -> io::Result<()> {
            self.0.run();
            Ok(())
        }

        fn withdraw(&self, _: &IoEvent<'_>) -> io::Result<()> {
            self.0.run();
            Ok(())
        }
    }

    /// A memory map that refuses all but the first installation.
    #[derive(Default)]
    pub(super) struct Refuses(AtomicBool);

    #[expect(unsafe_code, reason = "the trait's own")]
    impl SetMemslot for Refuses {
        // SAFETY: nothing is done with the address.
        unsafe fn install(&self, _: &SlotMemory) -> io::Result<()> {
            if self.0.swap(true, Ordering::SeqCst) { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        }

        fn remove(&self, _: &SlotMemory) -> io::Result<()> {
            Ok(())
        }
    }
}

fn blocking() -> Caller<'static> {
    Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block)
}

/// An IOMMU that counts.
#[derive(Default)]
struct Counts(AtomicUsize, AtomicUsize);

impl Iommu for Counts {
    fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
        self.0.fetch_add(1, SeqCst);
        Ok(())
    }

    fn unmap(&self, _: u64, _: usize) {
        self.1.fetch_add(1, SeqCst);
    }
}
