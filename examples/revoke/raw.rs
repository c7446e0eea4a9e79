//! Accesses to device memory without this crate's accessors, as a VMM makes them: raw pointers and system calls.
//!
//! UNSAFETY: volatile accesses and system calls at addresses inside a [`Mapping`] that the caller holds. Other threads
//! and the owner write the memory at any time, and a revocation takes it away. No reference to it is ever made.
#![expect(unsafe_code, reason = "accesses a mapping by address, as a VMM does")]

use nix::errno::Errno;
use nix::libc;
use revocable_mmio::Mapping;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

fn at(mapping: &Mapping, offset: usize, size: usize) -> *mut u8 {
    assert!(offset % size == 0 && offset + size <= mapping.len(), "offset {offset:#x} in {mapping:?}");
    mapping.as_ptr().wrapping_add(offset)
}

/// A load under the mapping's policy: while the region is disabled it may raise a signal.
pub(crate) fn load(mapping: &Mapping, offset: usize) -> u64 {
    let from = at(mapping, offset, 8).cast::<u64>();
    // SAFETY: inside the mapping and aligned, as `at` has checked.
    unsafe { from.read_volatile() }
}

/// A store under the mapping's policy: while the region is disabled it may raise a signal.
pub(crate) fn store(mapping: &Mapping, offset: usize, value: u64) {
    let to = at(mapping, offset, 8).cast::<u64>();
    // SAFETY: inside the mapping and aligned, as `at` has checked; callers have read-write mappings.
    unsafe { to.write_volatile(value) }
}

/// pwrite(2): the kernel loads 8 bytes from the mapping.
pub(crate) fn load_by_kernel(mapping: &Mapping, offset: usize, file: &File) -> Result<u64, Errno> {
    let from = at(mapping, offset, 8).cast_const().cast();
    // SAFETY: 8 bytes inside the mapping; the kernel returns EFAULT for a fault.
    let n = unsafe { libc::pwrite(file.as_raw_fd(), from, 8, 0) };
    whole(n, 8)?;
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0).map_err(errno)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// pread(2): the kernel stores 1 byte into the mapping. One, so that a store never happens in part.
pub(crate) fn store_by_kernel(mapping: &Mapping, offset: usize, byte: u8, file: &File) -> Result<(), Errno> {
    file.write_all_at(&[byte], 0).map_err(errno)?;
    let to = at(mapping, offset, 1).cast();
    // SAFETY: 1 byte inside a mapping that is read-write; the kernel returns EFAULT for a fault.
    let n = unsafe { libc::pread(file.as_raw_fd(), to, 1, 0) };
    whole(n, 1)
}

/// A transfer is short if it was revoked half-way.
fn whole(n: isize, expected: usize) -> Result<(), Errno> {
    match usize::try_from(n) {
        Ok(n) if n == expected => Ok(()),
        Ok(_) => Err(Errno::EFAULT),
        Err(_) => Err(Errno::last()),
    }
}

fn errno(e: io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(nix::libc::EIO))
}
