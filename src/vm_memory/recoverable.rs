//! Accesses by guest address that go through the regions' own `Bytes`.

use ::vm_memory::guest_memory::Result;
use ::vm_memory::{
    Address, AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    MemoryRegionAddress, ReadVolatile, WriteVolatile,
};
use std::sync::atomic::Ordering;

/// Guest memory whose accesses by guest address recover if the region's own do, and cross from one region into the next.
///
/// vm-memory's own `Bytes<GuestAddress>` accesses every region by slices, which not every mapping gives out and which hold
/// up a revocation; this calls each region's own `Bytes`. A short part ends a transfer, and an error after the first part
/// is an error.
#[derive(Debug)]
pub struct Recoverable<'a, M: ?Sized>(pub &'a M);

impl<M: ?Sized> Clone for Recoverable<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: ?Sized> Copy for Recoverable<'_, M> {}

impl<M: GuestMemoryBackend + ?Sized> Recoverable<'_, M> {
    /// Goes through the regions of the `count` bytes from `addr` on; `step(done, len, region, at)` does one part and
    /// returns how much of it was done. An error after the first part is still an error: the device has to know.
    fn each(
        &self,
        addr: GuestAddress,
        count: usize,
        mut step: impl FnMut(usize, usize, &M::R, MemoryRegionAddress) -> Result<usize>,
    ) -> Result<usize> {
        let mut done = 0;
        while done < count {
            let here = addr.checked_add(done as u64).ok_or(GuestMemoryError::GuestAddressOverflow)?;
            let Some((region, at)) = self.0.to_region_addr(here) else {
                return if done == 0 { Err(GuestMemoryError::InvalidGuestAddress(addr)) } else { Ok(done) };
            };
            let room = usize::try_from(region.len() - at.raw_value()).unwrap_or(usize::MAX);
            let len = room.min(count - done);
            let moved = step(done, len, region, at)?;
            done += moved;
            if moved < len {
                // A short part ends the transfer: what comes next would leave a gap.
                break;
            }
        }
        Ok(done)
    }

    fn single(&self, addr: GuestAddress) -> Result<(&M::R, MemoryRegionAddress)> {
        self.0.to_region_addr(addr).ok_or(GuestMemoryError::InvalidGuestAddress(addr))
    }
}

fn exactly(expected: usize, completed: usize) -> Result<()> {
    if completed == expected { Ok(()) } else { Err(GuestMemoryError::PartialBuffer { expected, completed }) }
}

impl<M: GuestMemoryBackend + ?Sized> Bytes<GuestAddress> for Recoverable<'_, M> {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: GuestAddress) -> Result<usize> {
        self.each(addr, buf.len(), |done, len, region, at| region.write(&buf[done..done + len], at))
    }

    fn read(&self, buf: &mut [u8], addr: GuestAddress) -> Result<usize> {
        self.each(addr, buf.len(), |done, len, region, at| region.read(&mut buf[done..done + len], at))
    }

    fn write_slice(&self, buf: &[u8], addr: GuestAddress) -> Result<()> {
        exactly(buf.len(), self.write(buf, addr)?)
    }

    fn read_slice(&self, buf: &mut [u8], addr: GuestAddress) -> Result<()> {
        let expected = buf.len();
        exactly(expected, self.read(buf, addr)?)
    }

    fn read_volatile_from<F: ReadVolatile>(&self, addr: GuestAddress, src: &mut F, count: usize) -> Result<usize> {
        self.each(addr, count, |_, len, region, at| region.read_volatile_from(at, src, len))
    }

    fn read_exact_volatile_from<F: ReadVolatile>(&self, addr: GuestAddress, src: &mut F, count: usize) -> Result<()> {
        exactly(count, self.read_volatile_from(addr, src, count)?)
    }

    fn write_volatile_to<F: WriteVolatile>(&self, addr: GuestAddress, dst: &mut F, count: usize) -> Result<usize> {
        // As in vm-memory: what a sink does not take would be lost.
        self.each(addr, count, |_, len, region, at| region.write_all_volatile_to(at, dst, len).map(|()| len))
    }

    fn write_all_volatile_to<F: WriteVolatile>(&self, addr: GuestAddress, dst: &mut F, count: usize) -> Result<()> {
        exactly(count, self.write_volatile_to(addr, dst, count)?)
    }

    fn store<T: AtomicAccess>(&self, val: T, addr: GuestAddress, order: Ordering) -> Result<()> {
        let (region, at) = self.single(addr)?;
        region.store(val, at, order)
    }

    fn load<T: AtomicAccess>(&self, addr: GuestAddress, order: Ordering) -> Result<T> {
        let (region, at) = self.single(addr)?;
        region.load(at, order)
    }
}
