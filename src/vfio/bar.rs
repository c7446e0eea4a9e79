//! A BAR of a vfio device: one region for each part of it that can be mapped.

use super::error::VfioError;
use super::info::{RegionFlags, RegionInfo};
use super::memory_bit::MemoryBit;
use crate::region::backing::{Backing, OnRevoke};
use crate::region::group::ResetGroup;
use crate::region::{Region, RegionBuilder};
use crate::sys::{map, page_size};
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// Makes a [`VfioBar`].
#[derive(Clone, Debug)]
#[must_use]
pub struct VfioBarBuilder {
    info: RegionInfo,
    name: String,
    on_revoke: OnRevoke,
    enabled: bool,
    memory_bit: Option<MemoryBit>,
}

impl VfioBarBuilder {
    /// The name of its regions, in errors and `Debug`. Default: `vfio`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What happens to the device's descriptor on revocation. Default: [`OnRevoke::Keep`].
    pub fn on_revoke(mut self, on_revoke: OnRevoke) -> Self {
        self.on_revoke = on_revoke;
        self
    }

    /// Starts disabled. Default: enabled, whatever the device's own memory bit says.
    pub fn disabled(mut self) -> Self {
        self.enabled = false;
        self
    }

    /// The registers by which the device turns its memory off itself: an access gets
    /// [`AccessError::Disabled`](crate::AccessError) then, or all-ones, as its mapping's policy says.
    pub fn memory_bit(mut self, memory_bit: MemoryBit) -> Self {
        self.memory_bit = Some(memory_bit);
        self
    }

    /// Makes the regions, each with a duplicate of the device's descriptor.
    ///
    /// # Errors
    /// Nothing of the BAR can be mapped, or a region cannot be made. Nothing is left behind.
    pub fn build(self, device: BorrowedFd<'_>) -> Result<VfioBar, VfioError> {
        let size = self.info.size();
        let regions = self.regions(device)?;
        if regions.is_empty() {
            return Err(VfioError::NotMappable { size });
        }
        let made = regions.into_iter().map(|(range, region)| Ok(Area { range, region: region.build()? }));
        let areas = made.collect::<Result<Vec<_>, VfioError>>()?;
        let group = ResetGroup::new(areas.iter().map(|area| &area.region));
        Ok(VfioBar { size, areas, group })
    }

    /// Its parts that can be mapped, each described as a region with a duplicate of the device's descriptor.
    pub(super) fn regions(&self, device: BorrowedFd<'_>) -> Result<Vec<(Range<u64>, RegionBuilder)>, VfioError> {
        let page = page_size() as u64;
        let regions = self.info.mappable(page).into_iter().map(|part| {
            let len = (part.end - part.start).checked_next_multiple_of(page).and_then(|len| usize::try_from(len).ok());
            // A length or an offset that does not fit is too large for the region as well.
            let mut region = Region::builder(len.unwrap_or(usize::MAX - usize::MAX % page_size()));
            region = region.name(format!("{} {:#x}", self.name, part.start)).backing(Backing::File {
                fd: map::dup(device)?,
                offset: self.info.offset().checked_add(part.start).unwrap_or(u64::MAX - u64::MAX % page),
                device: Some(self.on_revoke),
            });
            if !self.info.flags().contains(RegionFlags::WRITE) {
                region = region.read_only();
            }
            if let Some(bit) = self.memory_bit.clone() {
                region = region.memory_enabled(move |device| bit.is_on(device));
            }
            Ok((part, if self.enabled { region } else { region.disabled() }))
        });
        regions.collect()
    }
}

/// A part of a BAR that can be mapped.
#[derive(Debug)]
pub struct Area {
    range: Range<u64>,
    region: Region,
}

impl Area {
    /// Which bytes of the BAR it has.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Its memory: as long as the range, rounded up to a page.
    pub fn region(&self) -> &Region {
        &self.region
    }
}

/// A BAR of a vfio device, as regions that are revoked together. See the [module](crate::vfio).
///
/// ```
/// use nix::sys::memfd::{MFdFlags, memfd_create};
/// use revocable_mmio::vfio::{Area, MemoryBit, RegionFlags, RegionInfo, VfioBar, VfioBarBuilder, VfioError};
/// use revocable_mmio::{MapOptions, OnRevoke};
/// use std::os::fd::{AsFd, BorrowedFd};
///
/// /// Lets accesses see that a real device has turned itself off.
/// fn of_real(builder: VfioBarBuilder, device: BorrowedFd<'_>) -> Result<VfioBar, VfioError> {
///     builder.memory_bit(MemoryBit::of(device)?).build(device)
/// }
///
/// // Stands for a device of vfio, which is opened from it again.
/// let device = std::fs::File::from(memfd_create("bar", MFdFlags::empty())?);
/// device.set_len(0x4000)?;
/// let info = RegionInfo::new(0, 0x4000, RegionFlags::READ | RegionFlags::WRITE | RegionFlags::MMAP);
/// let builder: VfioBarBuilder = VfioBar::builder(info).name("nic BAR0").on_revoke(OnRevoke::Drop);
/// let bar = builder.disabled().build(device.as_fd())?;
/// assert_eq!((bar.size(), bar.areas().len()), (0x4000, 1));
/// let area: &Area = &bar.areas()[0];
/// assert_eq!((area.range(), area.region().len()), (0..0x4000, 0x4000));
///
/// let registers = bar.region().ok_or("mapped as a whole")?.map(MapOptions::new())?;
/// bar.supply(device.as_fd())?; // a disabled bar that drops its device holds none
/// bar.group().enable()?;
/// registers.write(0, 7_u32)?;
/// bar.group().disable()?; // nothing holds the device now
/// assert!(registers.read::<u32>(0).is_err());
/// bar.supply(device.as_fd())?; // opened again
/// bar.group().enable()?;
/// assert_eq!(registers.read::<u32>(0)?, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct VfioBar {
    size: u64,
    areas: Vec<Area>,
    group: ResetGroup,
}

impl VfioBar {
    /// Starts describing a BAR, of which the kernel says `info`.
    pub fn builder(info: RegionInfo) -> VfioBarBuilder {
        let (name, on_revoke) = ("vfio".to_owned(), OnRevoke::Keep);
        VfioBarBuilder { info, name, on_revoke, enabled: true, memory_bit: None }
    }

    /// Its size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The parts of it that can be mapped, in order. What is between them is read and written by calls.
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// Its region, if it can be mapped as a whole.
    pub fn region(&self) -> Option<&Region> {
        let whole = self.areas.first().filter(|area| area.range == (0..self.size));
        whole.map(|area| &area.region)
    }

    /// All its regions, which are revoked together or not at all.
    pub fn group(&self) -> &ResetGroup {
        &self.group
    }

    /// Gives the regions a device again, before they are enabled, after a revocation that dropped it
    /// ([`OnRevoke::Drop`]). It must be the same device, or one with the same BAR.
    ///
    /// # Errors
    /// Out of descriptors; or a region has a device already. The regions before it have this one then.
    pub fn supply(&self, device: BorrowedFd<'_>) -> Result<(), VfioError> {
        self.areas.iter().try_for_each(|area| {
            let supplied = area.region.supply(map::dup(device)?);
            supplied.map_err(|_| VfioError::Supplied)
        })
    }
}
