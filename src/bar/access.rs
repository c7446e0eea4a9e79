//! Accesses to a BAR by call: what a guest's accesses that exit get.

use super::area_core::AreaCore;
use super::areas::Areas;
use super::device_io::{self, DeviceIo};
use super::shared::Shared;
use crate::memslot::BusAccess;
use crate::protocol::caller::Caller;
use crate::protocol::fault::FaultFlags;
use crate::region::Region;
use crate::region::access_error::AccessError;
use crate::region::owner::OwnerView;
use crate::users::Theirs;
use std::ops::Range;
use std::sync::Arc;

/// What answers at an offset.
pub(crate) enum Answers<'a> {
    /// The memory of an area, at this offset in its region.
    Memory(Arc<AreaCore>, usize),
    Device(&'a Theirs<dyn DeviceIo>),
    Nothing,
}

impl Shared {
    /// What answers at an offset, and how wide an access of at most `left` bytes is there.
    pub(crate) fn at(&self, offset: u64, left: usize) -> (Answers<'_>, usize) {
        let after = self.traps.partition_point(|trap| trap.range.end <= offset);
        let next = self.traps.get(after);
        if let Some(trap) = next.filter(|trap| trap.range.start <= offset) {
            return (Answers::Device(&trap.io), device_io::width(offset, trap.range.end, left));
        }
        let end = next.map_or(self.size, |trap| trap.range.start);
        let list = self.list.lock();
        let after = list.partition_point(|area| area.range.end <= offset);
        match list.get(after) {
            Some(area) if area.range.start <= offset => {
                // Inside of a region.
                let at = usize::try_from(offset - area.range.start).unwrap_or(usize::MAX);
                (Answers::Memory(Arc::clone(area), at), device_io::width(offset, end.min(area.range.end), left))
            }
            next => {
                let end = next.map_or(end, |area| end.min(area.range.start));
                (self.rest.as_ref().map_or(Answers::Nothing, Answers::Device), device_io::width(offset, end, left))
            }
        }
    }

    /// One access at `offset`, of the width that [`at`](Self::at) gave. `gate` makes an access to a region under the read side
    /// of its memory lock, if it may be made.
    pub(crate) fn access<E>(
        &self,
        answers: Answers<'_>,
        offset: u64,
        mut access: BusAccess<'_>,
        gate: impl FnOnce(&Region, &mut dyn FnMut(&OwnerView) -> Result<(), AccessError>) -> Result<(), E>,
    ) -> Result<(), E> {
        match answers {
            Answers::Memory(area, at) => {
                let dropped = matches!(access, BusAccess::Store(_)) && !area.region.shared.writable;
                gate(&area.region, &mut |view| if dropped { Ok(()) } else { access.make(view, at) })
            }
            Answers::Device(io) => {
                gate(&self.anchor, &mut |_| Ok(()))?;
                match access {
                    BusAccess::Load(into) => device_io::read(io, offset, into),
                    BusAccess::Store(bytes) => device_io::write(io, offset, bytes),
                }
                Ok(())
            }
            Answers::Nothing => {
                gate(&self.anchor, &mut |_| Ok(()))?;
                access.ones();
                Ok(())
            }
        }
    }
}

impl Areas {
    /// Reads on a caller's behalf, what a guest's load that exits gets: by accesses of 1, 2, 4 or 8 bytes, as the offset's
    /// alignment allows, each of them under the read side of the memory lock. The [table](super) says what answers.
    ///
    /// # Blocking
    /// Waits while the BAR is being reset.
    ///
    /// # Errors
    /// [`AccessError::Disabled`], with the offset in the BAR; a monitor gives its guest all-ones then, and drops a store.
    /// Nothing else is read, and the buffer may have been filled in part. Otherwise as [`Mapping::read_with`](crate::Mapping::read_with).
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        self.read_with(offset, into, FaultFlags::WAIT)
    }

    /// Writes on a caller's behalf; see [`read`](Self::read). A store to memory that is read-only is dropped.
    ///
    /// # Errors
    /// As [`read`](Self::read). What was written before the error stays written.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        self.write_with(offset, from, FaultFlags::WAIT)
    }

    /// [`read`](Self::read) for a caller with flags, a token, or that waits while the BAR is disabled.
    ///
    /// ```
    /// use revocable_mmio::bar::Bar;
    /// use revocable_mmio::fault::FaultFlags;
    /// use revocable_mmio::{AccessError, Region};
    ///
    /// let bar = Bar::builder(0x4000).area(0, Region::builder(0x4000)).build()?;
    /// let areas = bar.areas();
    /// areas.write_with(8, &[7, 0, 0, 0], FaultFlags::NOWAIT.union(FaultFlags::WRITE))?;
    /// bar.reset(|_| {
    ///     let busy = areas.read_with(8, &mut [0; 4], FaultFlags::NOWAIT);
    ///     assert_eq!(busy, Err(AccessError::WouldBlock { offset: 8 }));
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_with<'a>(
        &self,
        offset: u64,
        into: &mut [u8],
        caller: impl Into<Caller<'a>>,
    ) -> Result<(), AccessError> {
        let caller = caller.into();
        self.pieces(offset, into.len(), |answers, at, part| {
            let access = BusAccess::Load(&mut into[part]);
            self.shared.access(answers, at, access, |region, access| gated(region, at, &caller, access))
        })
    }

    /// [`write`](Self::write) for a caller with flags; see [`read_with`](Self::read_with).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_with<'a>(&self, offset: u64, from: &[u8], caller: impl Into<Caller<'a>>) -> Result<(), AccessError> {
        let caller = caller.into();
        self.pieces(offset, from.len(), |answers, at, part| {
            let access = BusAccess::Store(&from[part]);
            self.shared.access(answers, at, access, |region, access| gated(region, at, &caller, access))
        })
    }

    /// Makes a transfer, access by access.
    fn pieces(
        &self,
        offset: u64,
        len: usize,
        mut make: impl FnMut(Answers<'_>, u64, Range<usize>) -> Result<(), AccessError>,
    ) -> Result<(), AccessError> {
        let size = self.size();
        if offset.checked_add(len as u64).is_none_or(|end| end > size) {
            let [offset, of] = [offset, size].map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
            return Err(AccessError::OutOfBounds { offset, size: len, len: of });
        }
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (answers, width) = self.shared.at(at, len - done);
            make(answers, at, done..done + width)?;
            done += width;
        }
        Ok(())
    }
}

/// One access under the read side of a region's memory lock, if it is enabled.
fn gated(
    region: &Region,
    offset: u64,
    caller: &Caller<'_>,
    access: &mut dyn FnMut(&OwnerView) -> Result<(), AccessError>,
) -> Result<(), AccessError> {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let shared = &*region.shared;
    if shared.protocol.is_inherited() {
        return Err(AccessError::Forked { offset });
    }
    match shared.protocol.on_behalf(caller, || Some(access(&shared.owner))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) if shared.owner.is_empty() || shared.is_off() => Err(AccessError::Disabled { offset }),
        Ok(Err(_)) => Err(AccessError::NoMemory { offset }),
        Err(refused) => Err(AccessError::of_refused(refused, shared.protocol.phase(), offset)),
    }
}
