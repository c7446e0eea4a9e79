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
//! The guide shows it in a [VMM's exit loop](crate::guide::exit_loop), and how to do without it, below
//! [a configuration space of your own](crate::guide::own_config_space).
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
//! # BARs that move
//!
//! What keeps a BAR reachable at an address of the guest's (memslots, an MMIO bus, DMA mappings of a peer device) follows it
//! as an [`AddressMap`]. It is told where each BAR is decoded: before memory comes back, and after it is gone. A size probe
//! moves nothing, whether memory is on or off. [`BarSlots`] is the map of a BAR's memslots and ioeventfds. A move that is refused is an error of the write
//! ([`PciError::Place`]); the old place is given up all the same, since that is what the guest's register says.
//!
//! | the register | a BAR that is decoded | a BAR that is not, once it would be |
//! |---|---|---|
//! | holds an address | moves there at once | is decoded there |
//! | holds a size probe, in one half or both | stays where it is | is decoded nowhere |
//! | is being written in pieces | stays until a half is written as a whole | is decoded where it points |
//! | holds 0, or the BAR would not end in its space | is decoded nowhere | is decoded nowhere |
//!
//! A monitor with a configuration space of its own asks a [`Decoder`] for the same.
//!
//! # What the driver does and this module does not
//!
//! By the rows of the table of behaviours that this module is modelled on:
//! - Tracking of VMAs, and the lock order that it forced (vma_lock): replaced in the driver itself in Linux 6.10, and here
//!   by the region's list of mappings.
//! - How many pages a fault maps: the region decides, see [`FaultAround`](crate::FaultAround).
//! - VGA regions (legacy probing, never gated): there is no legacy VGA range to serve here; `Space` has none.
//! - Backdoor-reset detection (`vfio_need_bar_restore`): a reset leaves the BARs' registers as they are.
//! - Exporting BARs as dma-bufs: needs a kernel driver. [`Region::pin`](crate::Region::pin) follows its protocol (holders
//!   are told, waited for, and can pin again); [`DmaSpace`] and notifiers follow its invalidation.
//! - Low power with a wake-up eventfd: PME has no user-space counterpart.
//! - Interrupts: [`PciDevice::privileged`] gives what setting up MSI-X needs of the memory lock; vectors are not modelled.
//! - Group files, containers and ownership tokens: [`Bus::hot_reset`] asks a closure of the caller's instead.

mod address_map;
mod bar;
mod bar_builder;
mod bar_register;
mod bar_slots;
mod begun;
mod buffer;
mod builder;
mod bus_master;
mod capabilities;
mod command;
mod command_hook;
mod config;
mod config_access;
mod config_write;
mod decode;
mod device;
mod dma;
mod dma_part;
mod dma_segment;
mod error;
mod following;
pub(crate) mod hardware;
mod ioeventfd;
mod ioeventfd_table;
mod kicks;
mod peer_dma;
mod power;
mod registers;
mod regs;
mod reset;
mod save;
mod saved;
mod slot_access;
mod space;
mod state;

#[doc(inline)]
pub use crate::bar::DeviceIo as PortIo;
pub use crate::ioeventfd::Width;
pub use address_map::AddressMap;
pub use bar_builder::Bar;
pub use bar_register::{BarRegister, BarType};
pub use bar_slots::BarSlots;
pub use begun::BegunWrite;
pub use buffer::{BufferFault, MappingPart, Sink, Source};
pub use builder::PciBuilder;
pub use command_hook::Command;
pub use decode::{BarPlace, Decode, Decoder, MemoryStep, Steps};
pub use dma::{DmaSpace, Unmapped, WhyUnmapped};
pub use dma_segment::{DmaAccess, DmaSegment, Iommu};
pub use error::{AfterFailedReset, PciError};
pub use following::Following;
pub use ioeventfd_table::MOST_IOEVENTFDS;
pub use kicks::IoEventLoop;
pub use reset::Bus;
pub use saved::DeviceState;
pub use space::{Space, SpaceInfo};
pub use state::{PciDevice, ResetKind};
