//! The virtual machine: what changes a guest's memory map.
//!
//! UNSAFETY: hands an address range of this process to a hypervisor; see [`SetMemslot::install`].
#![expect(unsafe_code, reason = "the hypervisor keeps the address that it is given")]

use std::io;
use std::ops::Range;

/// A memslot: host memory at a guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SlotMemory {
    /// The memslot's number. A hypervisor without numbers goes by the guest address.
    pub slot: u32,
    /// The guest physical address, a multiple of the page size.
    pub gpa: u64,
    /// The size in bytes, a multiple of the page size.
    pub size: u64,
    /// The address of the first byte in this process.
    pub host: u64,
    /// The guest can load only; its stores exit.
    pub read_only: bool,
    /// The hypervisor keeps a log of the pages that the guest stores to.
    pub log_dirty: bool,
}

impl SlotMemory {
    /// The guest physical addresses.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.gpa..self.gpa + self.size
    }
}

/// Changes a guest's memory map. Implemented for `kvm_ioctls::VmFd` with feature `kvm`; a VMM implements it for its own
/// interface to its virtual machine, or for another hypervisor.
///
/// It is called without any lock of the crate, in the thread that changes the region's state, moves or drops the memslot.
/// A panic is a failure.
///
/// # Example
/// ```
/// # #![allow(unsafe_code)]
/// use revocable_mmio::memslot::{SetMemslot, SlotMemory};
/// use std::io;
///
/// /// A hypervisor in the manner of mshv: no slot numbers, and the size is needed to unmap.
/// struct Partition;
///
/// # impl Partition {
/// #     unsafe fn map(&self, _gfn: u64, _host: u64, _size: u64, _writable: bool) -> io::Result<()> { Ok(()) }
/// #     fn unmap(&self, _: std::ops::Range<u64>) -> io::Result<()> { Ok(()) }
/// # }
/// impl SetMemslot for Partition {
///     unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()> {
///         // SAFETY: by this function's own contract.
///         unsafe { self.map(memory.gpa >> 12, memory.host, memory.size, !memory.read_only) }
///     }
///
///     fn remove(&self, memory: &SlotMemory) -> io::Result<()> {
///         self.unmap(memory.range())
///     }
///
///     fn changes_in_place(&self) -> bool {
///         false // what is mapped must be unmapped first
///     }
/// }
/// ```
pub trait SetMemslot: Send + Sync {
    /// Puts a slot into the guest's memory map.
    ///
    /// # Safety
    /// Until the slot is removed, the `size` bytes from `host` on are a mapping that nothing else in this process relies
    /// on: the guest loads and stores there at any time.
    ///
    /// # Errors
    /// The hypervisor's error; the memory map is as before.
    unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()>;

    /// Takes a slot out. `memory` is as it was installed. Its dirty log is lost: to keep it, read it here.
    ///
    /// # Errors
    /// The hypervisor's error; the memory map is as before.
    fn remove(&self, memory: &SlotMemory) -> io::Result<()>;

    /// True if [`install`](Self::install) with the number of a slot that is there changes that slot's guest address and
    /// log in one step, as KVM does. Otherwise such a slot is removed first, and guest accesses exit in between.
    fn changes_in_place(&self) -> bool {
        false
    }
}
