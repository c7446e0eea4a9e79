//! BAR reads and writes on a caller's behalf (`vfio_pci_bar_rw`, `vfio_pci_core_do_io_rw`).
//!
//! Each access of 1, 2, 4 or 8 bytes takes the read side of the memory lock, asks whether the device decodes memory, and
//! goes through the owner's view, which nothing revokes. The caller's buffer is touched only between accesses.

use super::buffer::{BufferFault, Sink, Source};
use super::error::PciError;
use super::space::Space;
use super::state::{Device, Memory};
use crate::protocol::State;
use crate::protocol::caller::Caller;
use crate::protocol::fault::{FaultFlags, NotResolved};
use crate::raw::Primitive;
use crate::region::Region;
use crate::region::access_error::AccessError;
use crate::region::owner::OwnerView;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// How a caller waits for a device that is busy.
#[derive(Clone, Copy)]
pub(super) enum Wait<'a> {
    ForEver,
    As(Caller<'a>),
}

/// The next step of a transfer.
enum Step {
    /// One access of this many bytes.
    Access(usize),
    /// This many bytes that calls cannot reach.
    Excluded(usize),
}

/// The widest access at `at` that `left` bytes and the alignment allow.
#[inline]
fn step(at: u64, left: usize, excluded: &[Range<u64>], widest: usize) -> Step {
    let left = left as u64;
    let reachable = match excluded.iter().find(|excluded| at < excluded.end) {
        None => left,
        Some(next) if at < next.start => left.min(next.start - at),
        Some(this) => return Step::Excluded(usize::try_from(left.min(this.end - at)).unwrap_or(usize::MAX)),
    };
    for width in [8, 4, 2] {
        if width <= widest && reachable >= width as u64 && at % width as u64 == 0 {
            return Step::Access(width);
        }
    }
    Step::Access(1)
}

const WIDEST: usize = 8;
const WIDEST_ROM: usize = 4;

impl Device {
    /// How many bytes of a transfer of `len` bytes at `at` are in the space.
    #[inline]
    pub(super) fn extent(&self, space: Space, at: u64, len: usize, size: u64) -> Result<usize, PciError> {
        if at >= size {
            return Err(out_of_range(space, at, size));
        }
        Ok(len.min(usize::try_from(size - at).unwrap_or(usize::MAX)))
    }

    /// The widest access for a read, unless it is one of a ROM that is off.
    #[inline]
    pub(super) fn widest(&self, space: Space) -> Result<usize, PciError> {
        match space {
            // The driver finds this out when it maps the ROM for the transfer (`pci_map_rom`).
            Space::Rom if !self.decoding.load(Ordering::Relaxed) => Err(PciError::RomDisabled),
            Space::Rom => Ok(WIDEST_ROM),
            _ => Ok(WIDEST),
        }
    }

    #[inline]
    pub(super) fn read_space<B: Sink + ?Sized>(
        &self,
        space: Space,
        at: u64,
        into: &mut B,
        wait: Wait<'_>,
    ) -> Result<usize, PciError> {
        let Some(memory) = self.memory(space) else { return self.read_slot(space, at, into, wait) };
        let len = self.extent(space, at, into.len(), memory.size)?;
        let widest = self.widest(space)?;
        let mut done = 0;
        while done < len {
            let offset = at + done as u64;
            done += match step(offset, len - done, &memory.excluded, widest) {
                Step::Access(8) => self.load::<u64, B>(space, memory, offset, into, done, wait)?,
                Step::Access(4) => self.load::<u32, B>(space, memory, offset, into, done, wait)?,
                Step::Access(2) => self.load::<u16, B>(space, memory, offset, into, done, wait)?,
                Step::Access(_) => self.load::<u8, B>(space, memory, offset, into, done, wait)?,
                Step::Excluded(count) => {
                    let count = count.min(ONES.len());
                    into.put(done, &ONES[..count]).map_err(|source| failed(done, source))?;
                    count
                }
            };
        }
        Ok(len)
    }

    #[inline]
    pub(super) fn write_space<B: Source + ?Sized>(
        &self,
        space: Space,
        at: u64,
        from: &B,
        wait: Wait<'_>,
    ) -> Result<usize, PciError> {
        let Some(memory) = self.memory(space) else { return self.write_slot(space, at, from, wait) };
        let len = self.extent(space, at, from.len(), memory.size)?;
        let mut done = 0;
        while done < len {
            let offset = at + done as u64;
            done += match step(offset, len - done, &memory.excluded, WIDEST) {
                Step::Access(8) => self.store::<u64, B>(space, memory, offset, from, done, wait)?,
                Step::Access(4) => self.store::<u32, B>(space, memory, offset, from, done, wait)?,
                Step::Access(2) => self.store::<u16, B>(space, memory, offset, from, done, wait)?,
                Step::Access(_) => self.store::<u8, B>(space, memory, offset, from, done, wait)?,
                Step::Excluded(count) => count,
            };
        }
        Ok(len)
    }

    #[inline]
    fn load<T: Primitive, B: Sink + ?Sized>(
        &self,
        space: Space,
        memory: &Memory,
        offset: u64,
        into: &mut B,
        done: usize,
        wait: Wait<'_>,
    ) -> Result<usize, PciError> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let value: T = self.gated(space, &memory.region, offset, wait, |view| view.read(at))?;
        into.put(done, &value.to_bits().to_ne_bytes()[bytes_of::<T>()]).map_err(|source| failed(done, source))?;
        Ok(T::SIZE)
    }

    #[inline]
    fn store<T: Primitive, B: Source + ?Sized>(
        &self,
        space: Space,
        memory: &Memory,
        offset: u64,
        from: &B,
        done: usize,
        wait: Wait<'_>,
    ) -> Result<usize, PciError> {
        let mut bytes = [0; 8];
        from.get(done, &mut bytes[bytes_of::<T>()]).map_err(|source| failed(done, source))?;
        let value = T::from_bits(u64::from_ne_bytes(bytes));
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        self.gated(space, &memory.region, offset, wait, |view| view.write(at, value))?;
        Ok(T::SIZE)
    }

    /// One access under the read side of the memory lock, if the device decodes memory. Every access on a caller's behalf
    /// goes through here.
    #[inline]
    pub(super) fn gated<R>(
        &self,
        space: Space,
        region: &Region,
        offset: u64,
        wait: Wait<'_>,
        mut access: impl FnMut(&OwnerView) -> Result<R, AccessError>,
    ) -> Result<R, PciError> {
        let region = &*region.shared;
        let disabled = || PciError::Disabled { space, offset };
        // Relaxed: it changes only under the write side of the lock whose read side is held.
        let admits = |state| state != State::Gone && self.decoding.load(Ordering::Relaxed);
        if let Some(state) = region.protocol.try_read() {
            return match admits(*state) {
                true => access(&region.owner).map_err(|_| disabled()),
                false => Err(disabled()),
            };
        }
        if region.protocol.is_changed_by_caller() {
            return Err(PciError::Reentrant);
        }
        let caller = match wait {
            Wait::ForEver => Caller::new(FaultFlags::WAIT),
            Wait::As(caller) => caller,
        };
        match region.protocol.on_behalf_if(admits, &caller, || Some(access(&region.owner))) {
            Ok(done) => done.map_err(|_| disabled()),
            Err(NotResolved::Sigbus) => Err(disabled()),
            Err(NotResolved::WouldBlock) => Err(PciError::WouldBlock { space, offset }),
            Err(NotResolved::Killed) => Err(PciError::Cancelled { space, offset }),
            Err(NotResolved::WouldDeadlock) => Err(PciError::WouldDeadlock),
            Err(NotResolved::Reentrant) => Err(PciError::Reentrant),
            Err(NotResolved::Illegal(flags)) => Err(flags.into()),
        }
    }
}

/// The bytes that a call reads in a range that it cannot reach.
const ONES: [u8; 64] = [0xff; 64];

/// The position of a narrower value's bytes in a register-sized array.
#[inline]
fn bytes_of<T: Primitive>() -> Range<usize> {
    if cfg!(target_endian = "little") { 0..T::SIZE } else { 8 - T::SIZE..8 }
}

#[cold]
fn out_of_range(space: Space, offset: u64, size: u64) -> PciError {
    PciError::OutOfRange { space, offset, size }
}

#[cold]
pub(super) fn failed(at: usize, source: BufferFault) -> PciError {
    PciError::Buffer { at, source }
}
