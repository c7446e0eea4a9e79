//! The areas of a BAR.

use super::area::Area;
use super::error::BarError;
use super::shared::Shared;
use crate::region::RegionBuilder;
use crate::sync::wait::Patience;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The areas of a BAR: what it consists of. A clone is the same BAR. It does not keep the BAR: once the [`Bar`](super::Bar)
/// or the [`PciDevice`](crate::pci::PciDevice) is dropped, every verb is refused ([`RevokeError::Gone`](crate::RevokeError::Gone)).
///
/// ```
/// use revocable_mmio::bar::{Areas, Bar, BarError, DeviceIo};
/// use revocable_mmio::{AccessError, Backing, Region};
/// use std::os::fd::{AsFd, OwnedFd};
/// use std::sync::Arc;
///
/// /// The table of MSI-X vectors.
/// struct Vectors;
/// impl DeviceIo for Vectors {
///     fn read(&self, _: u64, into: &mut [u8]) {
///         into.fill(0);
///     }
///     fn write(&self, offset: u64, bytes: &[u8]) {
///         println!("vector {}: {bytes:x?}", offset % 0x1000 / 16);
///     }
/// }
///
/// /// What the device does with RESOURCE_MAP_BLOB.
/// fn map_blob(areas: &Areas, offset: u64, blob: &OwnedFd, len: usize) -> Result<revocable_mmio::bar::Area, BarError> {
///     let backing = Backing::file(blob.as_fd(), 0)?;
///     areas.insert(offset, Region::builder(len).name("blob").backing(backing))
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let vectors = Arc::new(Vectors);
/// let bar = Bar::builder(1 << 20).area(0, Region::builder(0x8000)).trap(0x2010..0x2810, vectors).build()?;
/// # let blob = nix::sys::memfd::memfd_create("blob", nix::sys::memfd::MFdFlags::empty())?;
/// # nix::unistd::ftruncate(&blob, 0x4000)?;
/// let blob = map_blob(bar.areas(), 0x1_0000, &blob, 0x4000)?;
/// assert_eq!(bar.areas().ranges(), [0..0x8000, 0x1_0000..0x1_4000]);
/// assert_eq!(bar.areas().size(), 1 << 20);
///
/// // What exits is made by call: a store to the table, and one beside it, in the same page.
/// bar.areas().write(0x2020, &[1, 0, 0, 0])?;
/// bar.areas().write(0x2000, &[1, 0, 0, 0])?;
/// bar.disable()?; // the blob too
/// let mut value = [0; 4];
/// let refused = bar.areas().read(0x2000, &mut value);
/// assert!(matches!(refused, Err(AccessError::Disabled { offset: 0x2000 })));
/// refused.unwrap_or_else(|_| value.fill(0xff)); // an Unsupported Request, as on the bus
/// drop(blob); // in any state
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Areas {
    pub(crate) shared: Arc<Shared>,
}

impl Areas {
    /// The size of the BAR, in bytes.
    pub fn size(&self) -> u64 {
        self.shared.size
    }

    /// Which bytes of the BAR are areas now, in order.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        self.shared.list.lock().iter().map(|area| area.range.clone()).collect()
    }

    /// Makes a region of what `region` describes the memory at `offset`, until the returned value is dropped. The region gets
    /// the BAR's state, whatever the builder says. With [`BarBuilder::memslots`](super::BarBuilder::memslots) its whole pages
    /// are in the guest's memory map when this returns, except those with a [trap](super::BarBuilder::trap).
    ///
    /// `offset` is a multiple of the page size. The region may end after the BAR, within the BAR's last page: an area of a
    /// BAR that is smaller than a page has one page, and no memslot.
    ///
    /// # Blocking
    /// Waits for a change of the BAR that another thread is making, a reset for instance, with its callbacks.
    ///
    /// # Errors
    /// Nothing is changed: see [`BarError`]. [`RevokeError::Reentrant`](crate::RevokeError::Reentrant) from inside a callback of a change of the BAR.
    pub fn insert(&self, offset: u64, region: RegionBuilder) -> Result<Area, BarError> {
        self.insert_within(offset, region, Patience::Forever)
    }

    /// [`insert`](Self::insert) that waits for no other change.
    ///
    /// ```
    /// use revocable_mmio::Region;
    /// use revocable_mmio::bar::Bar;
    /// use std::time::Duration;
    ///
    /// let bar = Bar::builder(1 << 20).build()?;
    /// let areas = bar.areas().clone();
    /// bar.reset(|_| std::thread::scope(|threads| {
    ///     threads.spawn(|| assert!(areas.try_insert(0, Region::builder(0x4000)).unwrap_err().is_busy()));
    ///     threads.spawn(|| {
    ///         let gave_up = areas.insert_timeout(0, Region::builder(0x4000), Duration::from_millis(5));
    ///         assert!(gave_up.unwrap_err().is_busy());
    ///     });
    /// }))?;
    /// let _area = areas.try_insert(0, Region::builder(0x4000))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [Busy](BarError::is_busy) where `insert` would wait.
    pub fn try_insert(&self, offset: u64, region: RegionBuilder) -> Result<Area, BarError> {
        self.insert_within(offset, region, Patience::Never)
    }

    /// [`insert`](Self::insert) that gives up after `patience`.
    ///
    /// # Errors
    /// [Busy](BarError::is_busy) if another change took longer.
    pub fn insert_timeout(&self, offset: u64, region: RegionBuilder, patience: Duration) -> Result<Area, BarError> {
        self.insert_within(offset, region, Patience::within(patience))
    }

    fn insert_within(&self, offset: u64, region: RegionBuilder, patience: Patience) -> Result<Area, BarError> {
        let _turn = self.shared.take_turn(patience)?;
        let core = self.shared.insert(offset, region)?;
        Ok(Area::new(Arc::clone(&self.shared), core))
    }
}

impl fmt::Debug for Areas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &*self.shared;
        f.debug_struct("Areas")
            .field("name", &shared.name)
            .field("size", &format_args!("{:#x}", shared.size))
            .field("ranges", &format_args!("{:#x?}", self.ranges()))
            .field("enabled", &shared.anchor.is_enabled())
            .finish_non_exhaustive()
    }
}
