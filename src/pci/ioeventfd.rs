//! ioeventfds: an eventfd that stands for one write to a BAR (`vfio_pci_ioeventfd`).
//!
//! When it is signalled, the write is tried without waiting. If the device is busy, a new thread waits and writes; while
//! memory is disabled the write is dropped, like a write that no device on a bus decodes. In all cases the eventfd is
//! consumed.

use super::bar::Wait;
use super::error::PciError;
use super::ioeventfd_table::{MOST_IOEVENTFDS, Write};
use super::kicks::{IoEventLoop, Kick};
use super::space::Space;
use super::state::{BarSlot, Device, Memory, PciDevice};
use crate::ioeventfd::Width;
use crate::protocol::caller::Caller;
use crate::protocol::fault::FaultFlags;
use crate::sys::map::dup;
use crate::sys::thread;
use crate::users::guarded;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// One of a device's ioeventfds.
pub(super) struct IoEventFd {
    device: Weak<Device>,
    write: Write,
    /// Signals for which a thread is waiting to write; one write is enough for all of them.
    deferred: AtomicU64,
}

impl PciDevice {
    /// Writes `value` to the BAR at `offset` each time `eventfd` is signalled. This is a write by call, except that it is
    /// dropped while memory is disabled. An ioeventfd can be added in any state, and an eventfd that is signalled already
    /// writes at once. The descriptor is duplicated.
    ///
    /// # Errors
    /// EINVAL: no such BAR or offset, the MSI-X table, or a descriptor that is not an eventfd. EEXIST: the same offset,
    /// width and value again, even with another eventfd. ENOSPC: more than [`MOST_IOEVENTFDS`]. EPERM: in a forked child, a
    /// device or loop of its parent's.
    pub fn add_ioeventfd(
        &self,
        bar: usize,
        offset: u64,
        width: Width,
        value: u64,
        eventfd: BorrowedFd<'_>,
    ) -> Result<(), PciError> {
        if !self.device.ioeventfds.process.is_current() {
            return Err(PciError::Forked);
        }
        let write = self.device.check(Write { bar, offset, width, value })?;
        let table = &self.device.ioeventfds;
        let mut list = table.list.lock();
        if list.iter().any(|(known, _)| *known == write) {
            return Err(PciError::Exists);
        }
        if list.len() >= MOST_IOEVENTFDS {
            return Err(PciError::TooMany { limit: MOST_IOEVENTFDS });
        }
        let eventfd: OwnedFd = dup(eventfd)?;
        let mut kicks = table.kicks.lock();
        let kicks = match &mut *kicks {
            Some(kicks) => kicks,
            none => none.insert(IoEventLoop::shared()?),
        };
        let target = IoEventFd { device: Arc::downgrade(&self.device), write, deferred: AtomicU64::new(0) };
        let registration = kicks.register(eventfd, Arc::new(target))?;
        list.push((write, registration));
        Ok(())
    }

    /// Removes an ioeventfd. A write that is under way may still be made.
    ///
    /// # Errors
    /// There is no ioeventfd for that offset, width and value (ENODEV).
    pub fn remove_ioeventfd(&self, bar: usize, offset: u64, width: Width, value: u64) -> Result<(), PciError> {
        if !self.device.ioeventfds.process.is_current() {
            return Err(PciError::Forked);
        }
        let write = self.device.check(Write { bar, offset, width, value })?;
        let mut list = self.device.ioeventfds.list.lock();
        let at = list.iter().position(|(known, _)| *known == write).ok_or(PciError::NotFound)?;
        let removed = list.swap_remove(at);
        drop(list);
        drop(removed);
        Ok(())
    }
}

impl Device {
    fn check(&self, write: Write) -> Result<Write, PciError> {
        let space = Space::Bar(write.bar);
        let slot = self.slots.get(write.bar).and_then(Option::as_ref);
        let slot = slot.ok_or(PciError::NoSuchSpace { space, why: "the device has no such BAR" })?;
        let size = slot.size();
        let end = write.offset.checked_add(write.width.bytes() as u64).filter(|end| *end <= size);
        let end = end.ok_or(PciError::OutOfRange { space, offset: write.offset, size })?;
        let excluded = slot.memory().map_or(&[][..], |memory| &memory.excluded);
        if excluded.iter().any(|excluded| write.offset < excluded.end && excluded.start < end) {
            return Err(PciError::NoSuchSpace { space, why: "an ioeventfd cannot write the MSI-X table" });
        }
        Ok(write)
    }

    fn make(&self, write: Write, wait: Wait<'_>) -> Result<(), PciError> {
        let Write { bar, offset, width, value } = write;
        let space = Space::Bar(bar);
        match self.slots.get(bar).and_then(Option::as_ref) {
            Some(BarSlot::Io(_) | BarSlot::Areas(_)) => {
                self.write_slot(space, offset, &value.to_le_bytes()[..width.bytes()], wait).map(drop)
            }
            Some(BarSlot::Memory(memory)) => self.store_as(space, memory, offset, width, value, wait),
            None => Ok(()),
        }
    }

    /// One access of the width asked for, if the offset's alignment allows it; otherwise single bytes. All of it is under
    /// one look at the state.
    #[expect(clippy::cast_possible_truncation, reason = "the width says how much of the value counts")]
    fn store_as(
        &self,
        space: Space,
        memory: &Memory,
        offset: u64,
        width: Width,
        value: u64,
        wait: Wait<'_>,
    ) -> Result<(), PciError> {
        let aligned = offset % width.bytes() as u64 == 0;
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        self.gated(space, &memory.region, offset, wait, |view| match width {
            Width::Eight if aligned => view.write(at, value),
            Width::Four if aligned => view.write(at, value as u32),
            Width::Two if aligned => view.write(at, value as u16),
            _ => value.to_le_bytes()[..width.bytes()]
                .iter()
                .enumerate()
                .try_for_each(|(i, byte)| view.write(at + i, *byte)),
        })
    }
}

impl Kick for IoEventFd {
    fn signalled(self: Arc<Self>) {
        let Some(device) = self.device.upgrade() else { return };
        let nowait = Wait::As(Caller::new(FaultFlags::NOWAIT));
        // Dropped if memory is disabled. If the file is out of memory, there is no caller to tell.
        let Err(PciError::WouldBlock { .. }) = device.make(self.write, nowait) else { return };
        // AcqRel, as in `make_deferred`: either the thread there sees this signal, or this sees that it has ended.
        if self.deferred.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let kick = Arc::clone(&self);
        if thread::spawn("mmio-ioeventfd", move || kick.make_deferred(&device)).is_err() {
            // No thread could be started: as if the signal had been merged with a later one.
            self.deferred.store(0, Ordering::Release);
        }
    }
}

impl IoEventFd {
    /// Waits and writes, and again if there were more signals meanwhile, so that a write follows every signal.
    fn make_deferred(&self, device: &Device) {
        loop {
            let seen = self.deferred.load(Ordering::Acquire);
            let _ = guarded(|| device.make(self.write, Wait::ForEver));
            if self.deferred.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }
}
