//! Feature `vm-memory`: a mapping as a region of guest memory, for devices written against [`vm_memory`](https://docs.rs/vm-memory).
//!
//! A virtio device that follows a descriptor into a plain mapping of revoked memory takes SIGBUS, and the VM dies with it.
//! Through a [`RevocableRegion`] the same access returns an error that says why, and the device can fail its request.
//!
//! vm-memory, and with it virtio-queue's `Reader` and `Writer`, accesses memory by address, in slices. A slice of a
//! [`RevocableRegion`] is a guard, like [`Access`](crate::Access): it is given out while the region is enabled, under every
//! policy, and until it is dropped the region stays enabled. While the region is disabled there is none, and the device
//! gets an error instead of a signal or of ones.
//!
//! The guide has a page on [virtio](crate::guide::virtio).
//!
//! # What is offered
//!
//! | trait | offered | why (not) |
//! |---|---|---|
//! | `GuestMemoryRegion`, its `get_slice` and `as_volatile_slice` | for writable mappings | a slice can be stored to. Not for accessors only: other code's faults are not resolved. Not of regions [shared](crate::RegionBuilder::shared) with policy `Sigbus`: another process can cut their file off |
//! | ... its `get_host_address` | of policy `AllOnes` besides | an address outlives any guard, and only all-ones is never a signal |
//! | `Bytes<MemoryRegionAddress>` | yes, for all mappings | loads, stores and copies recover, and hold no guard. Transfers (`read_volatile_from` and the others) are vm-memory's own, over a slice; without one over a buffer of the whole length |
//! | `GuestMemoryBackend`, `GuestMemory`, `Bytes<GuestAddress>` | yes, by `GuestRegionCollection<RevocableRegion>` or of [`AnyRegion`] | vm-memory's own, by slices |
//! | `Bytes<GuestAddress>` for all mappings | [`Recoverable`] | calls each region's own `Bytes`. A short part ends a transfer, where vm-memory goes on in the next region, and an error after the first part is an error |
//! | `file_offset` | no | the file can be mapped again, and no revocation would reach that mapping |
//! | `IommuMemory` (vm-memory's feature `iommu`) | no | it replaces the bitmaps of slices, and with them the guards: the bitmap that it asks for cannot be made |
//! | `GuestMemoryMmap`, `GuestRegionMmap` | no | vm-memory's own types, which access by address without a guard |
//!
//! Dirty tracking works as in vm-memory: bytes that are written through a region are marked in its bitmap.
//!
//! # Blocking
//!
//! A slice is given out after the end of a reset. `disable()` and `reset()` wait for slices and for transfers under way: a
//! file that blocks holds them up, so give transfers non-blocking ones, and drop `Reader` and `Writer` when a request is
//! done. A thread that holds a slice and changes the region's state gets
//! [`WouldDeadlock`](crate::RevokeError::WouldDeadlock). A slice stays in its thread. As with
//! [`Access::as_ptr`](crate::Access::as_ptr), a region over a caller's file that others truncate is no memory for slices.
//!
//! # Errors
//!
//! A refused access is `GuestMemoryError::IOError` whose source is a [`CopyError`](crate::CopyError) or an
//! [`AccessError`](crate::AccessError); an access outside the region is `InvalidBackendAddress`.
//!
//! # Example
//!
//! ```
//! use revocable_mmio::vm_memory::RevocableRegion;
//! use revocable_mmio::{MapOptions, Region};
//! use std::sync::Arc;
//! use vm_memory::{Bytes, GuestAddress, GuestRegionCollection};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bar = Region::builder(64 << 10).build()?;
//! let region = RevocableRegion::new(GuestAddress(0xe000_0000), Arc::new(bar.map(MapOptions::new())?))?;
//! let memory = GuestRegionCollection::from_regions(vec![region])?;
//!
//! memory.write_obj(7u32, GuestAddress(0xe000_0010))?;
//! bar.disable()?;
//! assert!(memory.read_obj::<u32>(GuestAddress(0xe000_0010)).is_err());
//! bar.enable()?;
//! assert_eq!(memory.read_obj::<u32>(GuestAddress(0xe000_0010))?, 7);
//! # Ok(())
//! # }
//! ```
//!
//! # A virtio device
//!
//! With virtio-queue 0.18, over RAM and a BAR whose buffers the driver uses:
//!
//! ```
//! use revocable_mmio::vm_memory::AnyRegion;
//! use std::io::{Read, Write};
//! use virtio_queue::DescriptorChain;
//! use vm_memory::{GuestRegionCollection, GuestRegionMmap};
//!
//! type Memory = GuestRegionCollection<AnyRegion<GuestRegionMmap>>;
//!
//! /// Echoes a request. An error if a buffer is in a BAR that the guest has turned off: the request fails, not the VM.
//! fn serve(memory: &Memory, request: DescriptorChain<&Memory>) -> Result<u32, Box<dyn std::error::Error>> {
//!     let mut bytes = [0; 16];
//!     request.clone().reader(memory)?.read_exact(&mut bytes)?;
//!     request.writer(memory)?.write_all(&bytes)?;
//!     Ok(16)
//! }
//! ```

mod any;
mod bytes;
mod guarded;
mod recoverable;
mod refusal;
mod region;
mod transfer;

pub use any::AnyRegion;
pub use guarded::{Guarded, GuardedSlice};
pub use recoverable::Recoverable;
pub use region::{RegionError, RevocableRegion};
