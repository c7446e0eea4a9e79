//! The description of a BAR.

use super::areas::Areas;
use super::device_io::{DeviceIo, Trap};
use super::error::BarError;
use super::guest::Guest;
use super::shared::{Shared, overlap};
use super::state::Bar;
use crate::memslot::{Memslots, Retention};
use crate::region::{Region, RegionBuilder};
use crate::sync::inside::Mutex;
use crate::sys::page_size;
use crate::users::Theirs;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The largest BAR: 2^63 bytes.
const LARGEST: u64 = 1 << 63;

/// Makes a [`Bar`], or describes one for [`pci::Bar::areas`](crate::pci::Bar::areas).
///
/// ```
/// use revocable_mmio::Region;
/// use revocable_mmio::bar::{Bar, BarBuilder, BarError, DeviceIo};
/// use revocable_mmio::memslot::{Memslots, Retention};
/// use std::sync::Arc;
///
/// /// Registers that read as their offset.
/// struct Registers;
/// impl DeviceIo for Registers {
///     fn read(&self, offset: u64, into: &mut [u8]) {
///         into.fill(offset as u8);
///     }
///     fn write(&self, _: u64, _: &[u8]) {}
/// }
///
/// /// A page of registers, memory that stays, and registers behind it.
/// fn describe() -> BarBuilder {
///     let bar = Bar::builder(256 << 20).name("gpu BAR2").trap(0..0x1000, Arc::new(Registers));
///     bar.area(0x1000, Region::builder(0x4000)).rest(Arc::new(Registers))
/// }
///
/// /// The same in a guest's memory map.
/// fn for_a_guest(slots: &Memslots) -> BarBuilder {
///     describe().memslots(slots, 8..16, Retention::AllOnes)
/// }
///
/// let bar = describe().disabled().build()?;
/// assert!(!bar.is_enabled() && bar.areas().ranges() == [0x1000..0x5000]);
/// bar.enable()?;
/// let mut value = [0; 2];
/// bar.areas().read(0x22, &mut value)?;
/// assert_eq!(value, [0x22; 2]);
///
/// let twice = describe().trap(0xfff..0x1001, Arc::new(Registers)).build();
/// assert!(matches!(twice, Err(BarError::Overlap { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct BarBuilder {
    size: u64,
    name: String,
    enabled: bool,
    traps: Vec<Trap>,
    rest: Option<Theirs<dyn DeviceIo>>,
    fixed: Vec<(u64, RegionBuilder)>,
    memslots: Option<(Memslots, Range<u32>, Retention)>,
}

impl Bar {
    /// Starts describing a BAR of `size` bytes; any size from 1 on.
    pub fn builder(size: u64) -> BarBuilder {
        BarBuilder::new(size)
    }
}

impl BarBuilder {
    pub(super) fn new(size: u64) -> Self {
        let name = "bar".to_owned();
        Self { size, name, enabled: true, traps: Vec::new(), rest: None, fixed: Vec::new(), memslots: None }
    }

    /// The name shown in `Debug` and errors. Default: `bar`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Starts disabled. Default: enabled. In a [`PciDevice`](crate::pci::PciDevice) the device decides.
    pub fn disabled(mut self) -> Self {
        self.enabled = false;
        self
    }

    /// Lets `io` answer these bytes, such as a table of MSI-X vectors, whatever area has them. Pages that have any of them are
    /// in no memslot: guest accesses to the rest of such a page exit too, and [`Areas::read`] makes them in the area.
    pub fn trap(mut self, range: Range<u64>, io: Arc<dyn DeviceIo>) -> Self {
        self.traps.push(Trap { range, io: Theirs::new(io) });
        self
    }

    /// Lets `io` answer what neither an area nor a trap has. Default: reads give all-ones, and writes are dropped.
    pub fn rest(mut self, io: Arc<dyn DeviceIo>) -> Self {
        self.rest = Some(Theirs::new(io));
        self
    }

    /// An area that stays as long as the BAR; otherwise as [`Areas::insert`].
    pub fn area(mut self, offset: u64, region: RegionBuilder) -> Self {
        self.fixed.push((offset, region));
        self
    }

    /// Puts the areas' whole pages into a guest's memory map, by memslots with these numbers, the lowest first. An area takes
    /// one number, and one more for each [trap](Self::trap) in the middle of it. Their place comes with
    /// [`Areas::move_to`]. The mappings have [`OnDisabled::AllOnes`](crate::OnDisabled::AllOnes), or
    /// [`OnDisabled::Sigbus`](crate::OnDisabled::Sigbus) with [`Retention::Keep`].
    pub fn memslots(mut self, slots: &Memslots, numbers: Range<u32>, retention: Retention) -> Self {
        self.memslots = Some((slots.clone(), numbers, retention));
        self
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Enabled, or disabled, whatever was asked for.
    pub(crate) fn starting(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Makes the BAR, with the areas that stay. It takes a file and a page of memory of its own, without any area.
    ///
    /// # Errors
    /// See [`BarError`]: nothing is left behind.
    pub fn build(self) -> Result<Bar, BarError> {
        let Self { size, name, enabled, mut traps, rest, fixed, memslots } = self;
        if size == 0 || size > LARGEST {
            return Err(BarError::Size { size });
        }
        traps.sort_by_key(|trap| trap.range.start);
        for (at, Trap { range, .. }) in traps.iter().enumerate() {
            if range.is_empty() || range.end > size {
                return Err(BarError::OutOfRange { range: range.clone(), size });
            }
            if let Some(next) = traps.get(at + 1).filter(|next| overlap(&next.range, range)) {
                return Err(BarError::Overlap { range: next.range.clone(), other: range.clone() });
            }
        }
        let anchor = Region::builder(page_size()).name(name.clone()).starting(enabled).build()?;
        let guest = memslots.map(|(slots, numbers, retention)| Guest::new(slots, numbers, retention));
        let list = Mutex::default();
        // From here on dropping `bar` undoes whatever was done.
        let bar = Bar::new(Areas {
            shared: Arc::new(Shared {
                name,
                size,
                anchor,
                turn: Default::default(),
                ended: Default::default(),
                list,
                traps,
                rest,
                guest,
            }),
        });
        for (offset, region) in fixed {
            bar.areas().shared.insert(offset, region)?;
        }
        Ok(bar)
    }
}

impl fmt::Debug for BarBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BarBuilder").field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}
