//! The one ioctl: a change of the guest's memory map.
//!
//! UNSAFETY: hands an address range of this process to KVM; see [`SetMemslot::set`].
#![expect(unsafe_code, reason = "KVM keeps the address that it is given")]

use crate::sys::{SysError, may_fail};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::errno::Errno;
use std::io;

/// The ioctl's name.
pub(super) const CALL: &str = "KVM_SET_USER_MEMORY_REGION";

/// Changes a guest's memory map: a [`VmFd`], or a VMM's own interface to its virtual machine. It is called without any lock
/// of the crate; a panic is a failure.
pub trait SetMemslot: Send + Sync {
    /// `KVM_SET_USER_MEMORY_REGION`. A slot of 0 bytes is removed.
    ///
    /// # Safety
    /// Until the slot is removed, the `memory_size` bytes from `userspace_addr` on are a mapping that nothing else in this
    /// process relies on: the guest reads and writes it at any time.
    ///
    /// # Errors
    /// KVM's error; the slot is as before.
    unsafe fn set(&self, slot: &kvm_userspace_memory_region) -> io::Result<()>;
}

impl SetMemslot for VmFd {
    unsafe fn set(&self, slot: &kvm_userspace_memory_region) -> io::Result<()> {
        // SAFETY: by this function's own contract.
        let done = unsafe { self.set_user_memory_region(*slot) };
        done.map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }
}

/// Puts a mapping that a [`Memslot`](super::Memslot) holds into the guest's memory map, or takes it out.
pub(super) fn change(vm: &dyn SetMemslot, slot: &kvm_userspace_memory_region) -> Result<(), SysError> {
    may_fail(CALL)?;
    // SAFETY: the only caller is a memslot's core, which owns the mapping and takes the slot out before it gives the
    // mapping up (or leaks it). The device, mappings of the region and other processes reach the memory too, by accesses
    // that expect other writers: the crate has no references to region memory.
    let done = unsafe { vm.set(slot) };
    done.map_err(|e| SysError::new(CALL, Errno::from_raw(e.raw_os_error().unwrap_or(0))))
}
