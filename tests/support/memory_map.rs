//! A virtual machine of which a test sees the memory map, and which refuses on request.
#![expect(unsafe_code, reason = "an implementor of SetMemslot")]

use revocable_mmio::memslot::{SetMemslot, SlotMemory};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A memory map that keeps what it is told.
#[derive(Default)]
pub(crate) struct Map {
    pub(crate) slots: Mutex<Vec<SlotMemory>>,
    /// How many more installations it refuses.
    pub(crate) refuses: AtomicUsize,
    pub(crate) refuses_removals: AtomicUsize,
}

fn refused(left: &AtomicUsize) -> io::Result<()> {
    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Err(io::Error::from_raw_os_error(nix::libc::EINVAL)),
        Err(_) => Ok(()),
    }
}

impl SetMemslot for Map {
    // SAFETY: nothing is done with the address.
    unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()> {
        refused(&self.refuses)?;
        let mut slots = self.slots.lock().expect("no panic");
        assert!(slots.iter().all(|there| there.slot != memory.slot), "it is there already: {slots:x?} {memory:x?}");
        slots.push(*memory);
        Ok(())
    }

    fn remove(&self, memory: &SlotMemory) -> io::Result<()> {
        refused(&self.refuses_removals)?;
        let mut slots = self.slots.lock().expect("no panic");
        let at = slots.iter().position(|there| there == memory).expect("as it was installed, with its size");
        slots.remove(at);
        Ok(())
    }
}

impl Map {
    /// The guest addresses, in the order in which they came.
    pub(crate) fn places(&self) -> Vec<u64> {
        self.slots.lock().expect("no panic").iter().map(|slot| slot.gpa).collect()
    }
}
