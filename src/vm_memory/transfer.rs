//! Transfers between a region and a file, a socket or a buffer, by vm-memory's own code.
//!
//! That code accesses by address, under a guard: what it returns is then what it returns for ordinary memory. Where a
//! mapping has no address to give, it gets a buffer of the whole length, so that one call to the file stays one call.

use super::refusal::refused;
use super::region::RevocableRegion;
use crate::sys::SysError;
use ::vm_memory::bitmap::{Bitmap, BitmapSlice};
use ::vm_memory::guest_memory::Result;
use ::vm_memory::{
    Address, Bytes, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress, ReadVolatile, VolatileMemoryError,
    VolatileSlice, WriteVolatile,
};
use memmap2::MmapMut;
use nix::errno::Errno;

type Outcome<T> = std::result::Result<T, VolatileMemoryError>;

/// Runs one of vm-memory's transfers, over memory of any kind.
pub(super) trait Transfer<T> {
    fn run<S: BitmapSlice>(self, slice: &VolatileSlice<'_, S>) -> Outcome<T>;
}

/// One read, which may be short.
pub(super) struct Read<'a, F>(pub(super) &'a mut F);
/// Reads until all is filled.
pub(super) struct ReadExact<'a, F>(pub(super) &'a mut F);
/// One write, which may be short.
pub(super) struct Write<'a, F>(pub(super) &'a mut F);
/// Writes until all is written.
pub(super) struct WriteAll<'a, F>(pub(super) &'a mut F);

impl<F: ReadVolatile> Transfer<usize> for Read<'_, F> {
    fn run<S: BitmapSlice>(self, slice: &VolatileSlice<'_, S>) -> Outcome<usize> {
        slice.read_volatile_from(0, self.0, slice.len())
    }
}

impl<F: ReadVolatile> Transfer<usize> for ReadExact<'_, F> {
    fn run<S: BitmapSlice>(self, slice: &VolatileSlice<'_, S>) -> Outcome<usize> {
        slice.read_exact_volatile_from(0, self.0, slice.len()).map(|()| slice.len())
    }
}

impl<F: WriteVolatile> Transfer<usize> for Write<'_, F> {
    fn run<S: BitmapSlice>(self, slice: &VolatileSlice<'_, S>) -> Outcome<usize> {
        slice.write_volatile_to(0, self.0, slice.len())
    }
}

impl<F: WriteVolatile> Transfer<()> for WriteAll<'_, F> {
    fn run<S: BitmapSlice>(self, slice: &VolatileSlice<'_, S>) -> Outcome<()> {
        slice.write_all_volatile_to(0, self.0, slice.len())
    }
}

impl<B: Bitmap> RevocableRegion<B> {
    /// The part of `count` bytes from `addr` on that is in the region. As in vm-memory, none of them is no error right at
    /// its end.
    pub(super) fn rest(&self, addr: MemoryRegionAddress, count: usize) -> Result<usize> {
        let len = self.mapping.len() as u64;
        let rest = len.checked_sub(addr.raw_value()).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        Ok(usize::try_from(rest).map_or(count, |rest| count.min(rest)))
    }

    /// A transfer into the `count` bytes at `addr`, which returns how many of them it has filled.
    pub(super) fn fill(
        &self,
        addr: MemoryRegionAddress,
        count: usize,
        transfer: impl Transfer<usize>,
    ) -> Result<usize> {
        match self.get_slice(addr, count) {
            Ok(slice) => Ok(transfer.run(&slice)?),
            Err(GuestMemoryError::HostAddressNotAvailable) => {
                // Before the file is asked for bytes that would be lost.
                drop(self.mapping.access().map_err(refused)?);
                let mut buffer = buffer(count)?;
                let filled = transfer.run(&VolatileSlice::from(&mut buffer[..count]))?.min(count);
                self.write_slice(&buffer[..filled], addr).map(|()| filled)
            }
            Err(e) => Err(e),
        }
    }

    /// A transfer out of the `count` bytes at `addr`.
    pub(super) fn drain<T>(&self, addr: MemoryRegionAddress, count: usize, transfer: impl Transfer<T>) -> Result<T> {
        match self.get_slice(addr, count) {
            Ok(slice) => Ok(transfer.run(&slice)?),
            Err(GuestMemoryError::HostAddressNotAvailable) => {
                let mut buffer = buffer(count)?;
                self.read_slice(&mut buffer[..count], addr)?;
                Ok(transfer.run(&VolatileSlice::from(&mut buffer[..count]))?)
            }
            Err(e) => Err(e),
        }
    }
}

/// Zeroes, of which untouched ones cost no memory: the guest says how many there are.
fn buffer(count: usize) -> Result<MmapMut> {
    let mapped = MmapMut::map_anon(count.max(1));
    mapped.map_err(|e| refused(SysError::new("mmap", Errno::from_raw(e.raw_os_error().unwrap_or(0)))))
}
