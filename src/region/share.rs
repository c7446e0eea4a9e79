//! Sharing a region with other processes.

use super::Region;
use crate::sys::SysError;
use crate::view::Strategy;
use std::os::fd::OwnedFd;

/// The rights of a descriptor that is handed to another process.
///
/// ```
/// use revocable_mmio::{OnDisabled, Region, ShareAccess, ShareError};
///
/// let shared = Region::builder(4096).shared(OnDisabled::AllOnes).build()?;
/// let viewer = shared.share(ShareAccess::ReadOnly)?;
/// let driver = shared.share(ShareAccess::ReadWrite)?;
///
/// let own = Region::builder(4096).build()?; // reaches this process only
/// assert!(matches!(own.share(ShareAccess::ReadOnly), Err(ShareError::Strategy { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareAccess {
    /// Mapping it for loads only. Its holder delays a revocation by no more than the kernel takes to visit its mappings:
    /// 60,000 of 32 pages each took 0.4 to 0.7 s (Linux 6.18, 2 CPUs). That is so for a process of another user without
    /// `CAP_DAC_OVERRIDE`: all others can open the file anew by /proc/self/fd, for stores too.
    ReadOnly,
    /// Mapping it for loads and stores. Its holder can also write to, truncate and extend the file, which costs content
    /// while the region is enabled and nothing else, and can delay a revocation: see [`Region::share`].
    ReadWrite,
}

/// A region could not be shared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The region's strategy reaches mappings of this process only.
    #[error("strategy {strategy} revokes in this process only: build the region with RegionBuilder::shared")]
    Strategy {
        /// The region's strategy.
        strategy: Strategy,
    },
    /// Called in a forked child.
    #[error("the region is the parent's: a forked child builds one of its own")]
    Forked,
    /// The window could not be opened anew by /proc/self/fd: only the user who built the region may.
    #[error("no descriptor to share: {0}; is /proc mounted, and was the region built by this user?")]
    Sys(#[from] SysError),
}

impl Region {
    /// A descriptor by which another process can map the memory, `Region::len` bytes from offset 0 on: hand it to any
    /// process, any number of times (SCM_RIGHTS, inheritance, vfio-user, vhost-user). It is close-on-exec. The other process
    /// needs nothing of this crate, and what it does with the mapping is revoked with the region: loads, stores, system
    /// calls that begin, KVM, forked children, pinned pages. Pages that it has pinned are not the region's any more after
    /// that.
    ///
    /// If the owner's process ends while the region is disabled, nothing reaches the content any more. If it ends while the
    /// region is enabled, the other processes keep what they have mapped; the example `guardian` is a process that takes it
    /// away then. Dropping the region empties it.
    ///
    /// A peer that may write can hold the file's lock for as long as a write(2) to the file takes, whose source may never
    /// arrive. A revocation waits for that, or gives up as its verb says ([`Holders::peers`](crate::Holders)), while
    /// accesses go on. If the peer takes the lock in the middle of an emptying, accesses wait too: for 100 ms with no part
    /// (2 MiB) emptied, then the change is given up. Once the peer lets go, that emptying is done and undone: for a moment
    /// raw pointers, the owner's too, get what peers get of a disabled region. The crate's accesses wait.
    ///
    /// The guide has a page on [peers](crate::guide::peers).
    ///
    /// ```
    /// use revocable_mmio::{OnDisabled, Region, ShareAccess};
    /// use std::os::fd::{AsRawFd, OwnedFd};
    ///
    /// let bar = Region::builder(4096).shared(OnDisabled::Sigbus).build()?;
    /// let file: OwnedFd = bar.share(ShareAccess::ReadWrite)?;
    /// let message = [nix::sys::socket::ControlMessage::ScmRights(&[file.as_raw_fd()])]; // to a vfio-user client
    /// # let _ = message;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// * [`ShareError::Strategy`]: the region was not built with
    ///   [`RegionBuilder::shared`](crate::RegionBuilder::shared).
    /// * [`ShareError::Sys`]: the file could not be opened anew by /proc/self/fd: /proc is not mounted, another user
    ///   built the region, or descriptors ran out.
    /// * [`ShareError::Forked`]: the region is the parent's.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn share(&self, access: ShareAccess) -> Result<OwnedFd, ShareError> {
        let strategy = self.strategy();
        let window = self.shared.window.as_ref().ok_or(ShareError::Strategy { strategy })?;
        if self.shared.protocol.is_inherited() {
            return Err(ShareError::Forked);
        }
        Ok(window.reopen(access == ShareAccess::ReadWrite)?)
    }
}
