//! The vfio-pci device model over regions: what the kernel's driver does around its memory lock, for devices that are
//! emulated, mediated or served from user space.
//!
//! ```
//! use revocable_mmio::pci::{Bar, PciDevice, Space};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(0x20000)).build()?;
//! let mut value = [0; 4];
//! nic.write(Space::Config, 4, &2u16.to_le_bytes()[..])?; // the guest sets PCI_COMMAND.MEM
//! nic.read(Space::Bar(0), 8, &mut value[..])?;
//! nic.write(Space::Config, 4, &0u16.to_le_bytes()[..])?; // and clears it: every mapping of every BAR is revoked
//! assert_eq!(nic.read(Space::Bar(0), 8, &mut value[..]).unwrap_err().errno(), 5); // EIO
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! Each memory BAR is a [`Region`](crate::Region) with a memory lock of its own. A change of whether the device decodes
//! memory takes the write side of all of them, in one order, so they change together or not at all:
//!
//! | change | mappings | reads and writes by call |
//! |---|---|---|
//! | PCI_COMMAND.MEM cleared; D3hot | SIGBUS | EIO |
//! | runtime low power | SIGBUS | work: a call wakes the device, an access through a mapping never does |
//! | a reset, of the function or the bus | wait for its end | wait for its end |
//! | BAR moved or sized, other bits of COMMAND | unaffected | unaffected |
//! | virtual function, PCI_COMMAND.MEM cleared | zapped, and work | work |
//!
//! A BAR that is [shared](Bar::shared) is taken from other processes by the same changes: what they get instead is the
//! policy that it was shared with, during a reset too.
//!
//! The memory-enabled predicate is the driver's (`__vfio_pci_memory_enabled`): the power state is below D3hot, and the
//! virtual PCI_COMMAND.MEM bit is set or the device is a virtual function. A register shows a revocation only once that is
//! complete, and shows memory as enabled before it is given back.
//!
//! # What the driver does and this module does not
//!
//! By the rows of the table of behaviours that this module is modelled on:
//! - Tracking of VMAs, and the lock order that it forced (vma_lock): replaced in the driver itself in Linux 6.10, and here
//!   by the region's list of mappings.
//! - How many pages a fault maps: the region decides, see [`FaultAround`](crate::FaultAround).
//! - VGA regions (legacy probing, never gated): there is no legacy VGA range to serve here; `Space` has none.
//! - Backdoor-reset detection (`vfio_need_bar_restore`): a BAR's address exists in this configuration space only.
//! - FLR through the Advanced Features capability, which conventional PCI devices have: FLR through PCI Express is done.
//! - Exporting BARs as dma-bufs: needs a kernel driver. [`Region::pin`](crate::Region::pin) follows its protocol (holders
//!   are told, waited for, and can pin again); [`DmaSpace`] and notifiers follow its invalidation.
//! - Low power with a wake-up eventfd: PME has no user-space counterpart.
//! - Interrupts: [`PciDevice::privileged`] gives what setting up MSI-X needs of the memory lock; vectors are not modelled.
//! - Group files, containers and ownership tokens: [`Bus::hot_reset`] asks a closure of the caller's instead.

mod bar;
mod bar_builder;
mod buffer;
mod builder;
mod command;
mod config;
mod config_access;
mod device;
mod dma;
mod dma_part;
mod dma_segment;
mod error;
mod ioeventfd;
mod ioeventfd_table;
mod kicks;
mod power;
mod regs;
mod reset;
mod space;
mod state;

pub use crate::ioeventfd::Width;
pub use bar_builder::Bar;
pub use buffer::{BufferFault, MappingPart, Sink, Source};
pub use builder::PciBuilder;
pub use dma::DmaSpace;
pub use dma_segment::{DmaAccess, DmaSegment, Iommu};
pub use error::PciError;
pub use ioeventfd_table::MOST_IOEVENTFDS;
pub use kicks::IoEventLoop;
pub use reset::Bus;
pub use space::{Space, SpaceInfo};
pub use state::{PciDevice, PortIo, ResetKind};
