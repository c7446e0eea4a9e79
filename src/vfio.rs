//! BARs of real devices, by descriptors of the kernel's vfio.
//!
//! Two can take a real BAR away: the kernel, as the device's registers say (the memory bit of PCI_COMMAND, D3hot, a reset,
//! runtime low power), and the VMM, by this crate. Each does it in its own way, in any order, and an access through a
//! [`Mapping`](crate::Mapping) is an `Err` or all-ones either way, never a signal that ends the process.
//!
//! ```no_run
//! use revocable_mmio::vfio::VfioDevice;
//! use revocable_mmio::{AccessError, MapOptions};
//! # use std::os::fd::{AsFd, OwnedFd};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # fn open() -> std::io::Result<OwnedFd> {
//! #     let device = std::fs::File::options().read(true).write(true).open("/dev/vfio/devices/vfio0")?;
//! #     Ok(device.into())
//! # }
//! let device = VfioDevice::new(open()?)?; // by vfio-ioctls, iommufd-ioctls or hand
//! let bar = device.bar(0)?.build(device.as_fd())?;
//! let registers = bar.region().ok_or("the whole BAR can be mapped")?;
//! let mapping = registers.map(MapOptions::new())?;
//! mapping.write(0x10, 1_u32)?;
//!
//! device.write_config(4, &0_u16.to_le_bytes())?; // the kernel revokes
//! assert!(matches!(mapping.read::<u32>(0x10), Err(AccessError::Disabled { .. })));
//!
//! bar.group().disable()?; // and so does the VMM
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! A BAR is mapped by the strategy [Replace](crate::Strategy::Replace): a mapping of the device's file, with page-table
//! entries of 2 MiB where the kernel makes them, is replaced by a cover and back. Where only areas of a BAR can be mapped
//! (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`), each is a region, and all of them change together ([`VfioBar::group`]). In a
//! [`PciDevice`](crate::pci::PciDevice) such a BAR is one of [areas](crate::bar), and the device answers between them.
//!
//! | who revokes | mappings | a [`Pin`](crate::Pin), a DMA mapping by [`DmaSpace`](crate::pci::DmaSpace), a memslot |
//! |---|---|---|
//! | the VMM: [`Region::disable`](crate::Region::disable) | the policy | is waited for; is taken out; stays, and refuses |
//! | the kernel | accessors: the policy. Raw pointers: SIGBUS | stays; stays in the IOMMU; stays, and refuses |
//!
//! After an access that failed at an enabled region, the device is asked whether its memory is on ([`MemoryBit`]): two reads
//! of its configuration space. The kernel tells nothing when it revokes, so what depends on notifications (DMA mappings,
//! [`OnDisabled::Block`](crate::OnDisabled)) follows the VMM's changes only. A
//! [`PciDevice`](crate::pci::PciDevice) made by [`VfioDevice::pci`] makes them follow the guest's writes to configuration
//! space too: the regions lose the memory first, then the device is told, and the other way round when it comes back.
//!
//! A device is one of a group and a container, or one that is bound to an iommufd, attached or not: BARs, resets and low power
//! are the same. An iommufd does not map a BAR for DMA by its address, which type1 does
//! ([the guide](crate::guide::dma#containers-and-iommufd)), and opens a device once at a time. Its
//! [hot reset](VfioDevice::hot_reset) takes no groups.
//!
//! With [`OnRevoke::Drop`](crate::OnRevoke) nothing of the region holds the device while it is revoked: unbinding its driver
//! does not wait for it.
//!
//! On architectures other than x86-64 and aarch64 accesses do not recover. There each one asks the device first, and one
//! that the kernel overtakes ends the process: revoke the region before the device is turned off.
//!
//! The kernel's side needs Linux 5.8, which revokes at all. On 6.1, a mapping that was inherited by fork or moved by mremap
//! stays live when the kernel revokes; this crate's mappings are neither.

mod abi;
mod bar;
mod config;
mod device;
mod error;
mod hot_reset;
mod info;
mod memory_bit;
mod passthrough;
mod reply;
#[cfg(test)]
mod tests;

pub use bar::{Area, VfioBar, VfioBarBuilder};
pub use device::VfioDevice;
pub use error::VfioError;
pub use hot_reset::Function;
pub use info::{RegionFlags, RegionInfo};
pub use memory_bit::MemoryBit;
