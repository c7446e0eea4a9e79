//! The errors of the device model, each with the errno that vfio-pci gives for it.

use super::decode::BarPlace;
use super::space::Space;
use crate::monitor::error::MonitorError;
use crate::protocol::Failed;
use crate::protocol::error::RevokeError;
use crate::protocol::fault::IllegalFlags;
use crate::region::error::{BuildError, MapError};
use crate::region::group::GroupError;
use crate::region::shared::RegionShared;
use crate::sys::SysError;
use nix::errno::Errno;
use std::sync::Arc;

/// The device refused or failed; [`errno`](Self::errno) is the errno that vfio-pci returns for the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// Memory decoding is off, or the device is in D3hot (EIO).
    #[error(
        "{space:?} at {offset:#x}: memory decoding is off, or the device is in D3hot: set PCI_COMMAND.MEM, or the power state D0"
    )]
    Disabled {
        /// Which space.
        space: Space,
        /// Where in the space, in bytes.
        offset: u64,
    },
    /// The ROM cannot be read while memory decoding is off (ENOMEM).
    #[error("the ROM cannot be read while memory decoding is off: set PCI_COMMAND.MEM")]
    RomDisabled,
    /// The device has no such BAR, or it cannot be mapped (EINVAL).
    #[error("{space:?}: {why}")]
    NoSuchSpace {
        /// Which space.
        space: Space,
        /// The reason.
        why: &'static str,
    },
    /// The access starts at or beyond the end (EINVAL).
    #[error("offset {offset:#x} is beyond the {size:#x} bytes of {space:?}")]
    OutOfRange {
        /// Which space.
        space: Space,
        /// In bytes.
        offset: u64,
        /// Its size, in bytes.
        size: u64,
    },
    /// Configuration space is read and written inside its bounds only (EFAULT).
    #[error("{len} bytes at {offset:#x} are not inside the {size} bytes of configuration space")]
    ConfigRange {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: usize,
        /// Its size, in bytes.
        size: usize,
    },
    /// The caller's own buffer could not be read or written; a part of the transfer may have been done (EFAULT).
    #[error("the caller's buffer failed at byte {at}: {source}")]
    Buffer {
        /// Where in the buffer.
        at: usize,
        /// Why.
        source: super::buffer::BufferFault,
    },
    /// The access may not wait, and would have to (EAGAIN).
    #[error("{space:?} at {offset:#x} is busy and the access may not wait: try again")]
    WouldBlock {
        /// Which space.
        space: Space,
        /// In bytes.
        offset: u64,
    },
    /// The wait was cancelled (EINTR).
    #[error("the wait for {space:?} at {offset:#x} was called off")]
    Cancelled {
        /// Which space.
        space: Space,
        /// In bytes.
        offset: u64,
    },
    /// The flags contradict themselves (EINVAL).
    #[error(transparent)]
    Flags(#[from] IllegalFlags),
    /// Called from inside the device's own reset callback or notifier (EDEADLK).
    #[error(
        "called from inside this device's reset callback or one of its notifiers: call it from elsewhere, or after"
    )]
    Reentrant,
    /// It would wait for a change of state that waits for a guard of the calling thread (EDEADLK).
    #[error("this thread holds a guard that the change under way waits for: drop that guard first")]
    WouldDeadlock,
    /// Called in a forked child, on a device, loop or space of its parent's (EPERM).
    #[error("it is the parent's: a forked child makes its own")]
    Forked,
    /// The device has no way to be reset (EINVAL for a function, ENODEV for a bus).
    #[error("there is no way to reset this {what}: see PciBuilder::on_reset and Bus::new")]
    NoReset {
        /// `function` or `bus`.
        what: &'static str,
    },
    /// A reset would touch a function that the caller does not own (EINVAL).
    #[error("the reset affects {name}, which the caller does not own")]
    NotOwned {
        /// The function.
        name: String,
    },
    /// The reset itself failed (its errno, or EIO).
    #[error("the reset failed: {source}; {now}")]
    Reset {
        /// The error of the reset.
        source: std::io::Error,
        /// What the device is now.
        now: AfterFailedReset,
    },
    /// An [`AddressMap`](super::AddressMap) refused a place (its errno, or EFAULT). The registers are as written, and the
    /// BAR is decoded nowhere.
    #[error("{place}: {source}; it is decoded nowhere until it moves, or PciDevice::retry_places succeeds")]
    Place {
        /// The place.
        place: BarPlace,
        /// The map's error.
        source: std::io::Error,
    },
    /// The device is in low power already (EINVAL).
    #[error("the device is in low power already: exit_low_power() first")]
    LowPower,
    /// Another thread is changing the state of a function of the bus (EBUSY).
    #[error("{name} is busy; nothing was reset: try again")]
    Busy {
        /// The function.
        name: String,
    },
    /// The ioeventfd exists already (EEXIST).
    #[error("an ioeventfd for that offset, width and value exists: remove it first")]
    Exists,
    /// There is no such ioeventfd to remove (ENODEV).
    #[error("no ioeventfd for that offset, width and value")]
    NotFound,
    /// The limit of 1000 ioeventfds a device is reached (ENOSPC).
    #[error("a device has {limit} ioeventfds at most: remove others first")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The descriptor is not an eventfd (EINVAL).
    #[error("that descriptor is no eventfd: see eventfd(2)")]
    NotEventFd,
    /// An address cannot be mapped for DMA: its memory is revoked, or its rights do not allow it (EFAULT).
    #[error("{addr:#x} cannot be mapped for DMA: {why}")]
    Dma {
        /// The address.
        addr: usize,
        /// Why.
        why: &'static str,
    },
    /// The IOMMU refused (its errno, or EFAULT).
    #[error("the IOMMU refuses {len:#x} bytes at I/O address {iova:#x}: {source}")]
    Iommu {
        /// The I/O address.
        iova: u64,
        /// In bytes.
        len: usize,
        /// Its error.
        source: std::io::Error,
    },
    /// The range of I/O addresses is empty, not whole pages, or wraps around (EINVAL).
    #[error("{len:#x} bytes at I/O address {iova:#x}: {why}")]
    Iova {
        /// The I/O address.
        iova: u64,
        /// In bytes.
        len: usize,
        /// Why.
        why: &'static str,
    },
    /// The range of I/O addresses is taken (EEXIST).
    #[error("I/O address {iova:#x} is mapped already, or is being mapped or unmapped: unmap it first")]
    IovaTaken {
        /// The I/O address.
        iova: u64,
    },
    /// A saved state does not fit (EINVAL).
    #[error("the state cannot be restored: {0}")]
    State(&'static str),
    /// The description of the device contradicts itself.
    #[error("{0}")]
    Description(String),
    /// A BAR's memory could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A BAR could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The state could not be changed; everything is as before.
    #[error(transparent)]
    Revoke(#[from] GroupError),
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// What a device is after a reset that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterFailedReset {
    /// In the power state that it had before, and its memory is as it was.
    AsBefore,
    /// In the power state that it had before, and its memory is disabled until a reset succeeds:
    /// [`PciBuilder::revoked_after_failed_reset`](super::PciBuilder::revoked_after_failed_reset).
    Revoked,
}

impl std::fmt::Display for AfterFailedReset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AsBefore => "the device is as before",
            Self::Revoked => "its memory is disabled until a reset succeeds",
        })
    }
}

impl PciError {
    /// True if a caller that waits would not have got this.
    pub(super) fn is_busy(&self) -> bool {
        match self {
            Self::Busy { .. } => true,
            Self::Revoke(e) => e.is_busy(),
            _ => false,
        }
    }

    /// The errno that a system call would return: vfio-pci's, wherever the real driver was observed.
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::Disabled { .. } => Errno::EIO,
            Self::RomDisabled => Errno::ENOMEM,
            Self::ConfigRange { .. } | Self::Buffer { .. } | Self::Dma { .. } => Errno::EFAULT,
            Self::WouldBlock { .. } => Errno::EAGAIN,
            Self::Cancelled { .. } => Errno::EINTR,
            Self::Reentrant | Self::WouldDeadlock => Errno::EDEADLK,
            Self::Forked => Errno::EPERM,
            Self::Iommu { source, .. } | Self::Place { source, .. } => {
                return source.raw_os_error().unwrap_or(Errno::EFAULT as i32);
            }
            Self::NoReset { what: "bus" } => Errno::ENODEV,
            Self::Busy { .. } => Errno::EBUSY,
            Self::Exists | Self::IovaTaken { .. } => Errno::EEXIST,
            Self::NotFound => Errno::ENODEV,
            Self::TooMany { .. } => Errno::ENOSPC,
            Self::Reset { source, .. } => return source.raw_os_error().unwrap_or(Errno::EIO as i32),
            Self::Sys(e) => e.errno,
            Self::Map(MapError::Sys { source, .. }) => source.errno,
            Self::Map(MapError::Reentrant | MapError::WouldDeadlock) => Errno::EDEADLK,
            Self::Map(MapError::Forked) => Errno::EPERM,
            Self::Build(BuildError::Sys(e)) => e.errno,
            Self::Map(MapError::Monitor(e)) | Self::Build(BuildError::Monitor(e)) => match e {
                MonitorError::Sys(e) => e.errno,
                MonitorError::NoThreads | MonitorError::Foreign => Errno::EINVAL,
                MonitorError::Dead => Errno::ENOMEM,
            },
            Self::Build(BuildError::TooLarge { .. }) => Errno::ENOMEM,
            Self::Revoke(e) => match &e.source {
                RevokeError::Busy(_) | RevokeError::TimedOut { .. } => Errno::EBUSY,
                RevokeError::WouldDeadlock { .. } | RevokeError::Reentrant => Errno::EDEADLK,
                RevokeError::NotRestored { source } => {
                    return source.downcast_ref::<Self>().map_or(Errno::EIO as i32, Self::errno);
                }
                RevokeError::Gone | RevokeError::NoFile => Errno::ENODEV,
                RevokeError::Forked | RevokeError::Signal(_) => Errno::EPERM,
                RevokeError::Sys { source, .. } | RevokeError::Window { source } => source.errno,
                RevokeError::Barrier(e) => return e.raw_os_error().unwrap_or(Errno::EIO as i32),
            },
            Self::NoSuchSpace { .. }
            | Self::OutOfRange { .. }
            | Self::Flags(_)
            | Self::NoReset { .. }
            | Self::NotOwned { .. }
            | Self::LowPower
            | Self::NotEventFd
            | Self::Iova { .. }
            | Self::State(_)
            | Self::Description(_)
            | Self::Build(_)
            | Self::Map(_) => Errno::EINVAL,
        };
        errno as i32
    }
}

impl From<Failed<Arc<RegionShared>>> for PciError {
    fn from(failed: Failed<Arc<RegionShared>>) -> Self {
        Self::Revoke(failed.into())
    }
}
