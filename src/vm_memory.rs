//! Feature `vm-memory`: a mapping as a region of guest memory, for devices written against [`vm_memory`](https://docs.rs/vm-memory).
//!
//! A virtio device that follows a descriptor into a plain mapping of revoked memory takes SIGBUS, and the VM dies with it.
//! Through a [`RevocableRegion`] the same access returns an error that says why, and the device can fail its request.
//!
//! # What is offered
//!
//! | trait | offered | why (not) |
//! |---|---|---|
//! | `Bytes<MemoryRegionAddress>` | yes | every access is one of this crate's own, and recovers |
//! | `GuestMemoryRegion` | yes | |
//! | ... its `get_slice`, `as_volatile_slice`, `get_host_address` | for writable mappings of policy `AllOnes`; under Zap not for accessors only | they give out an address; an access by address gets what the mapping's policy says, and only all-ones is never a signal. With `Block` the device would wait and could not be cancelled |
//! | `GuestMemoryRegionBytes` | no | its `Bytes` go through `get_slice` |
//! | `GuestMemoryBackend`, `GuestMemory` | yes, by `GuestRegionCollection<RevocableRegion>` or of [`AnyRegion`] | |
//! | ... their `Bytes<GuestAddress>` | use [`Recoverable`] | vm-memory implements it for every `GuestMemory` by `get_slices`, that is by address: over a revocable region it returns `HostAddressNotAvailable` |
//! | `file_offset` | no | the file can be mapped again, and no revocation would reach that mapping |
//! | `GuestMemoryMmap`, `GuestRegionMmap` | no | vm-memory's own types, which access by address |
//!
//! Dirty tracking works as in vm-memory: bytes that are written through a region are marked in its bitmap.
//!
//! # Errors
//!
//! A refused access is `GuestMemoryError::IOError` whose source is a [`CopyError`](crate::CopyError) or an
//! [`AccessError`](crate::AccessError); an access outside the region is `InvalidBackendAddress`.
//!
//! # Example
//!
//! ```
//! use revocable_mmio::vm_memory::{Recoverable, RevocableRegion};
//! use revocable_mmio::{MapOptions, Region};
//! use std::sync::Arc;
//! use vm_memory::{Bytes, GuestAddress, GuestRegionCollection};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bar = Region::builder(64 << 10).build()?;
//! let region = RevocableRegion::new(GuestAddress(0xe000_0000), Arc::new(bar.map(MapOptions::new())?))?;
//! let memory = GuestRegionCollection::from_regions(vec![region])?;
//!
//! let device = Recoverable(&memory);
//! device.write_obj(7u32, GuestAddress(0xe000_0010))?;
//! bar.disable()?;
//! assert!(device.read_obj::<u32>(GuestAddress(0xe000_0010)).is_err());
//! bar.enable()?;
//! assert_eq!(device.read_obj::<u32>(GuestAddress(0xe000_0010))?, 7);
//! # Ok(())
//! # }
//! ```

mod any;
mod bytes;
mod recoverable;
mod region;

pub use any::AnyRegion;
pub use recoverable::Recoverable;
pub use region::{RegionError, RevocableRegion};
