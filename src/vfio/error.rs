//! Errors of devices of the kernel's vfio.

use crate::pci::PciError;
use crate::region::error::BuildError;
use crate::region::group::GroupError;
use crate::sys::SysError;

/// Something about a device of the kernel's vfio failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// The kernel refused.
    #[error("the device refuses: {0}")]
    Sys(#[from] SysError),
    /// A structure from the kernel contradicts itself.
    #[error("{what} of {len} bytes: {why}")]
    Reply {
        /// Its name in include/uapi/linux/vfio.h.
        what: &'static str,
        /// Its length, in bytes.
        len: usize,
        /// What contradicts.
        why: &'static str,
    },
    /// No part of the region can be mapped, such as I/O ports, the ROM, or a BAR that shares its page with another device's.
    #[error("no page of the {size:#x} bytes can be mapped: read and write it by calls")]
    NotMappable {
        /// The region's size, in bytes.
        size: u64,
    },
    /// The configuration space is not a PCI device's.
    #[error("the configuration space has {size} bytes: this is no PCI device")]
    NotPci {
        /// Its size, in bytes.
        size: u64,
    },
    /// A region of this crate's could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The regions of a BAR could not change their state.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The device's model could not be made.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The BAR has a device already: it is given another one only after a revocation that dropped it.
    #[error("the BAR has a device already: supply another one after disable(), with OnRevoke::Drop")]
    Supplied,
}
