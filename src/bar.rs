//! One object a BAR: areas of memory that come and go, holes that the device answers, one state, one list of memslots.
//!
//! A BAR is seldom one file. The table of MSI-X vectors is a hole in it, which must be answered and not mapped; a GPU's BAR
//! is a window into which a guest's blobs are mapped (virtio-gpu); so is the cache of a shared file system (DAX); a real
//! device's can be mapped in parts only (sparse mmap). A [`Bar`] has all of these as one address space:
//!
//! | at an offset | by call ([`Areas::read`], [`Areas::write`]) | in the guest's memory map |
//! |---|---|---|
//! | an area ([`Areas::insert`]): a [`Region`](crate::Region), which comes and goes | the region's memory | a memslot, of its whole pages |
//! | a trap ([`BarBuilder::trap`]), at any bytes, over areas too | the device's code ([`DeviceIo`]) | none: its pages exit |
//! | anything else | the code for the [rest](BarBuilder::rest), or all-ones | none |
//! | anywhere, while disabled | refused ([`AccessError::Disabled`](crate::AccessError)) | all-ones memory, or an exit, as [`Retention`](crate::memslot::Retention) says |
//! | anywhere, during a reset | waits | waits; what exits is read by call |
//!
//! Everything in it is revoked, given back and reset as one, together or not at all ([`Bar::disable`], [`Bar::enable`],
//! [`Bar::reset`]). An area that is inserted gets the state that the BAR has. So it can be inserted and removed at any time:
//! while the BAR is enabled, disabled, or, once that is over, being reset.
//!
//! [`PciDevice`](crate::pci::PciDevice) has such BARs too ([`pci::Bar::areas`](crate::pci::Bar::areas)): then the device's
//! registers change the state, of all BARs as one, and [`BarSlots`](crate::pci::BarSlots) moves the memslots. By itself a
//! [`Bar`] is for a monitor with a configuration space of its own, which moves the memslots with [`Areas::move_to`].
//!
//! The guide has a page on [BARs of several parts](crate::guide::areas). A signal handler must not call anything in this module.

mod access;
mod area;
mod area_core;
mod areas;
mod builder;
pub(crate) mod device_io;
mod error;
mod guest;
mod pieces;
mod placing;
mod shared;
mod state;
mod turn;

pub(crate) use access::Answers;
pub use area::Area;
pub use areas::Areas;
pub use builder::BarBuilder;
pub use device_io::DeviceIo;
pub use error::BarError;
pub use state::Bar;
pub(crate) use turn::AreasTurn;
