//! The spaces of a device that can be read, written or mapped.

/// A space of a device that can be read, written or mapped: one of vfio's region indices.
///
/// ```
/// use revocable_mmio::pci::{Bar, PciDevice, Space, SpaceInfo};
///
/// let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(0x20000)).build()?;
/// for index in 0..8 {
///     let space = Space::from_vfio_index(index)?;
///     let SpaceInfo { size, map, .. } = nic.info(space);
///     println!("{space:?}: {size:#x} bytes, can be mapped: {map}");
/// }
/// assert!(Space::from_vfio_index(8).is_err(), "VGA");
/// # Ok::<(), revocable_mmio::pci::PciError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// A base address register's memory or ports, 0 to 5.
    Bar(usize),
    /// The expansion ROM.
    Rom,
    /// Configuration space.
    Config,
}

/// The size of a space, and what can be done with it (`VFIO_DEVICE_GET_REGION_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceInfo {
    /// The size in bytes; 0 if the device does not have the space.
    pub size: u64,
    /// True if it can be read.
    pub read: bool,
    /// True if it can be written.
    pub write: bool,
    /// True if it can be mapped.
    pub map: bool,
}
