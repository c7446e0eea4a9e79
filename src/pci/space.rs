//! What of a device is read, written or mapped.

/// What of a device is read, written or mapped; vfio's region indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// A base address register's memory or ports, 0 to 5.
    Bar(usize),
    /// The expansion ROM.
    Rom,
    /// Configuration space.
    Config,
}

/// What a space is good for (`VFIO_DEVICE_GET_REGION_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceInfo {
    /// In bytes; 0 for one that the device does not have.
    pub size: u64,
    /// Can it be read?
    pub read: bool,
    /// Can it be written?
    pub write: bool,
    /// Can it be mapped?
    pub map: bool,
}
