//! The ways to access a region: accessors, raw pointers, system calls.

use super::Policy;
use super::worker::{NotDone, Terms, Touch};
use crate::output::Failed;
use crate::peer::{Access, NoValue, Peer};
use crate::raw;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, Strategy, Support};
use std::fs::File;

/// A way of access, with the policy of its mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// `Mapping::read` and `write`.
    Accessor(OnDisabled),
    /// The same on a mapping whose accesses resolve their own faults.
    AccessorsOnly,
    /// Volatile loads and stores through `Mapping::as_ptr`.
    Raw(OnDisabled),
    /// pwrite(2) out of the mapping, pread(2) into it.
    SystemCall,
    /// Loads and stores of another process, and its pwrite(2). The policy is the region's for such processes.
    Peer(OnDisabled),
}

impl Way {
    /// The ways that are possible in this process with mappings of `policy` of this region.
    pub(super) fn all(policy: Policy, region: &Region) -> Vec<Self> {
        use OnDisabled::{AllOnes, Block, Sigbus};
        let support = Support::current();
        let candidates = [
            Way::SystemCall,
            Way::Raw(AllOnes),
            Way::Accessor(Sigbus),
            Way::Raw(Block),
            Way::AccessorsOnly,
            Way::Accessor(AllOnes),
            Way::Accessor(Block),
        ];
        let possible = |way: &Way| match way {
            // A userfaultfd that does not see the kernel's faults refuses system calls where a load would wait.
            Way::SystemCall => support.sees_kernel_faults(),
            Way::AccessorsOnly => region.strategy() == Strategy::Zap,
            Way::Raw(Block) | Way::Accessor(Block) => support.userfaultfd(),
            Way::Raw(_) | Way::Accessor(_) | Way::Peer(_) => true,
        };
        candidates.into_iter().filter(|way| policy.covers(way.policy()) && possible(way)).collect()
    }

    pub(super) fn policy(self) -> OnDisabled {
        match self {
            Way::Accessor(policy) | Way::Raw(policy) | Way::Peer(policy) => policy,
            Way::AccessorsOnly | Way::SystemCall => OnDisabled::Sigbus,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Accessor(OnDisabled::AllOnes) => "accessor, all-ones",
            Way::Accessor(OnDisabled::Block) => "accessor, block",
            Way::Accessor(_) => "accessor",
            Way::AccessorsOnly => "accessor, own faults",
            Way::Raw(OnDisabled::AllOnes) => "raw pointer, all-ones",
            Way::Raw(_) => "raw pointer, block",
            Way::SystemCall => "system call",
            Way::Peer(OnDisabled::AllOnes) => "peer, all-ones",
            Way::Peer(_) => "peer",
        }
    }

    /// The bits of a cell that its stores change.
    pub(super) fn store_mask(self) -> u64 {
        match self {
            // The byte at the cell's first address.
            Way::SystemCall => u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0, 0]),
            Way::Accessor(_) | Way::AccessorsOnly | Way::Raw(_) | Way::Peer(_) => u64::MAX,
        }
    }
}

/// A way of access with a mapping of its own.
pub(super) struct Hand {
    way: Way,
    reach: Reach,
}

enum Reach {
    Mapping(Mapping),
    /// The other side of a system call, too.
    MappingAndFile(Mapping, File),
    Peer(Peer),
}

impl Hand {
    pub(super) fn new(way: Way, region: &Region) -> Result<Self, Failed> {
        let options = MapOptions::new().on_disabled(way.policy());
        let reach = match way {
            Way::Peer(_) => Reach::Peer(Peer::start(region)?),
            Way::AccessorsOnly => Reach::Mapping(region.map(options.accessors_only())?),
            Way::SystemCall => {
                let file = memfd_create(c"revoke-stress", MFdFlags::MFD_CLOEXEC)?;
                Reach::MappingAndFile(region.map(options)?, file.into())
            }
            Way::Accessor(_) | Way::Raw(_) => Reach::Mapping(region.map(options)?),
        };
        Ok(Self { way, reach })
    }
}

impl From<NoValue> for NotDone {
    fn from(why: NoValue) -> Self {
        match why {
            NoValue::Sigbus | NoValue::Errno(Errno::EFAULT) => NotDone::Refused,
            NoValue::Errno(errno) => NotDone::Wrong(errno.to_string()),
            NoValue::Ended(how) => NotDone::Wrong(how),
        }
    }
}

impl Touch for Hand {
    fn name(&self) -> String {
        self.way.name().to_owned()
    }

    fn terms(&self) -> Terms {
        let policy = self.way.policy();
        // Under Block loads and stores wait. System calls have mappings of policy Sigbus.
        Terms {
            is_refused: policy == OnDisabled::Sigbus,
            is_refused_by_busy: false,
            is_nowait: false,
            is_lost: policy == OnDisabled::AllOnes,
            is_peer: matches!(self.way, Way::Peer(_)),
        }
    }

    fn store_mask(&self) -> u64 {
        self.way.store_mask()
    }

    fn load(&self, offset: usize, turn: u64) -> Result<u64, NotDone> {
        match &self.reach {
            Reach::Peer(peer) if turn % 4 == 0 => Ok(peer.access(offset, Access::LoadByKernel)?),
            Reach::Peer(peer) => Ok(peer.access(offset, Access::Load)?),
            Reach::MappingAndFile(mapping, file) => Ok(raw::load_by_kernel(mapping, offset, file)?),
            Reach::Mapping(mapping) if matches!(self.way, Way::Raw(_)) => Ok(raw::load(mapping, offset)),
            Reach::Mapping(mapping) => Ok(mapping.read::<u64>(offset)?),
        }
    }

    fn store(&self, offset: usize, value: u64, _: u64) -> Result<(), NotDone> {
        match &self.reach {
            Reach::Peer(peer) => drop(peer.access(offset, Access::Store(value))?),
            Reach::MappingAndFile(mapping, file) => {
                raw::store_by_kernel(mapping, offset, value.to_ne_bytes()[0], file)?;
            }
            Reach::Mapping(mapping) if matches!(self.way, Way::Raw(_)) => raw::store(mapping, offset, value),
            Reach::Mapping(mapping) => mapping.write(offset, value)?,
        }
        Ok(())
    }
}
