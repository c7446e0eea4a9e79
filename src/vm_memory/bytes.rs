//! `Bytes`, implemented by the crate's own accesses.

use super::refusal::refused;
use super::region::RevocableRegion;
use super::transfer::{Read, ReadExact, Write, WriteAll};
use crate::raw::Primitive;
use ::vm_memory::bitmap::Bitmap;
use ::vm_memory::guest_memory::Result;
use ::vm_memory::{Address, AtomicAccess, Bytes, GuestMemoryError, MemoryRegionAddress, ReadVolatile, WriteVolatile};
use std::sync::atomic::{Ordering, fence};

impl<B: Bitmap> RevocableRegion<B> {
    /// Where the access starts in the region, and how many of `count` bytes from `addr` on are in it. As in vm-memory, an
    /// access that starts inside may end short, and one that starts outside is an error.
    fn part(&self, addr: MemoryRegionAddress, count: usize) -> Result<(usize, usize)> {
        let outside = GuestMemoryError::InvalidBackendAddress;
        let offset = usize::try_from(addr.raw_value()).ok().filter(|at| *at < self.mapping.len()).ok_or(outside)?;
        Ok((offset, count.min(self.mapping.len() - offset)))
    }

    /// The offset of one access, which must be aligned and inside.
    fn single<T: Primitive>(&self, addr: MemoryRegionAddress) -> Result<usize> {
        let (offset, len) = self.part(addr, size_of::<T>())?;
        match len == size_of::<T>() && offset % size_of::<T>() == 0 {
            true => Ok(offset),
            false => Err(GuestMemoryError::InvalidBackendAddress),
        }
    }

    fn load_as<T: Primitive>(&self, addr: MemoryRegionAddress) -> Result<T> {
        self.mapping.read(self.single::<T>(addr)?).map_err(refused)
    }

    fn store_as<T: Primitive>(&self, value: T, addr: MemoryRegionAddress) -> Result<()> {
        let offset = self.single::<T>(addr)?;
        self.mapping.write(offset, value).map_err(refused)?;
        self.bitmap.mark_dirty(offset, size_of::<T>());
        Ok(())
    }

    fn exactly(expected: usize, completed: usize) -> Result<()> {
        if completed == expected { Ok(()) } else { Err(GuestMemoryError::PartialBuffer { expected, completed }) }
    }
}

impl<B: Bitmap> Bytes<MemoryRegionAddress> for RevocableRegion<B> {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let (offset, len) = self.part(addr, buf.len())?;
        let copied = self.mapping.write_slice(offset, &buf[..len]);
        // Bytes that were copied before a refusal are dirty, too.
        self.bitmap.mark_dirty(offset, copied.as_ref().map_or_else(|e| e.done, |()| len));
        copied.map(|()| len).map_err(refused)
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let (offset, len) = self.part(addr, buf.len())?;
        self.mapping.read_slice(offset, &mut buf[..len]).map(|()| len).map_err(refused)
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<()> {
        Self::exactly(buf.len(), self.write(buf, addr)?)
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<()> {
        let expected = buf.len();
        Self::exactly(expected, self.read(buf, addr)?)
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<usize> {
        self.fill(addr, self.rest(addr, count)?, Read(src))
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<()> {
        self.fill(addr, count, ReadExact(src)).map(drop)
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<usize> {
        self.drain(addr, self.rest(addr, count)?, Write(dst))
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<()> {
        self.drain(addr, count, WriteAll(dst))
    }

    fn store<T: AtomicAccess>(&self, val: T, addr: MemoryRegionAddress, order: Ordering) -> Result<()> {
        // The access itself is relaxed; fences give it the ordering that was asked for.
        match order {
            Ordering::Relaxed => {}
            Ordering::Release | Ordering::SeqCst => fence(order),
            _ => return Err(refused(BadOrdering(order))),
        }
        let bytes = val.as_slice();
        match bytes.len() {
            1 => self.store_as(u8::from_ne_bytes(exact(bytes)), addr),
            2 => self.store_as(u16::from_ne_bytes(exact(bytes)), addr),
            4 => self.store_as(u32::from_ne_bytes(exact(bytes)), addr),
            8 => self.store_as(u64::from_ne_bytes(exact(bytes)), addr),
            _ => Err(GuestMemoryError::InvalidBackendAddress),
        }?;
        if order == Ordering::SeqCst {
            fence(order);
        }
        Ok(())
    }

    fn load<T: AtomicAccess>(&self, addr: MemoryRegionAddress, order: Ordering) -> Result<T> {
        match order {
            Ordering::Relaxed | Ordering::Acquire => {}
            Ordering::SeqCst => fence(order),
            _ => return Err(refused(BadOrdering(order))),
        }
        let mut value = T::zeroed();
        let bytes = value.as_mut_slice();
        match bytes.len() {
            1 => bytes.copy_from_slice(&self.load_as::<u8>(addr)?.to_ne_bytes()),
            2 => bytes.copy_from_slice(&self.load_as::<u16>(addr)?.to_ne_bytes()),
            4 => bytes.copy_from_slice(&self.load_as::<u32>(addr)?.to_ne_bytes()),
            8 => bytes.copy_from_slice(&self.load_as::<u64>(addr)?.to_ne_bytes()),
            _ => return Err(GuestMemoryError::InvalidBackendAddress),
        }
        if order != Ordering::Relaxed {
            fence(order);
        }
        Ok(value)
    }
}

fn exact<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

/// An ordering for which std's atomics panic.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no ordering for this access: loads acquire, stores release")]
struct BadOrdering(Ordering);
