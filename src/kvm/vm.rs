//! KVM's memory map.
//!
//! UNSAFETY: hands an address range of this process to KVM; see [`SetMemslot::install`].
#![expect(unsafe_code, reason = "KVM keeps the address that it is given")]

use crate::memslot::{SetMemslot, SlotMemory};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use std::io;

impl SetMemslot for VmFd {
    unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()> {
        // SAFETY: by this function's own contract.
        unsafe { set(self, memory, memory.size) }
    }

    fn remove(&self, memory: &SlotMemory) -> io::Result<()> {
        // SAFETY: a slot of 0 bytes is removed; KVM keeps no address.
        unsafe { set(self, memory, 0) }
    }

    fn changes_in_place(&self) -> bool {
        true
    }
}

/// `KVM_SET_USER_MEMORY_REGION`.
///
/// # Safety
/// As [`SetMemslot::install`], for the `size` bytes.
unsafe fn set(vm: &VmFd, memory: &SlotMemory, size: u64) -> io::Result<()> {
    let read_only = if memory.read_only { KVM_MEM_READONLY } else { 0 };
    let log_dirty = if memory.log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    let slot = kvm_userspace_memory_region {
        slot: memory.slot,
        flags: read_only | log_dirty,
        guest_phys_addr: memory.gpa,
        memory_size: size,
        userspace_addr: memory.host,
    };
    // SAFETY: by this function's own contract.
    let done = unsafe { vm.set_user_memory_region(slot) };
    done.map_err(|e| io::Error::from_raw_os_error(e.errno()))
}
