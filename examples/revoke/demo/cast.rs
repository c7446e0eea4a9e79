//! The users of the region, each in a thread of its own and through a mapping of its own, or in a process of its own.

use super::pagemap::PageMap;
use crate::output::Failed;
use crate::peer::{Access, NoValue, Peer};
use crate::raw;
use crate::spread::Spread;
use nix::errno::Errno;
use revocable_mmio::{AccessError, MapOptions, Mapping, OnDisabled, Region, Strategy, Support};
use std::fs::File;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// An access that takes longer is shown as waiting.
const WAITING: Duration = Duration::from_millis(4);

/// The way in which an actor accesses the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Driver,
    SystemCall,
    AllOnes,
    Block,
    Peer,
}

impl Role {
    /// The roles that are possible with this region in this process.
    pub(super) fn all(region: &Region) -> Vec<Self> {
        let mut roles = vec![Role::Driver, Role::SystemCall, Role::AllOnes];
        if Support::current().userfaultfd() {
            roles.push(Role::Block);
        }
        if region.strategy() == Strategy::Withdraw {
            roles.push(Role::Peer);
        }
        roles
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Driver => "Mapping::write",
            Role::SystemCall => "pwrite(2)",
            Role::AllOnes => "raw *ptr, AllOnes",
            Role::Block => "raw *ptr, Block",
            Role::Peer => "other process",
        }
    }

    pub(super) fn policy(self) -> OnDisabled {
        match self {
            // The region's for other processes, in the case of the peer.
            Role::Driver | Role::SystemCall | Role::Peer => OnDisabled::Sigbus,
            Role::AllOnes => OnDisabled::AllOnes,
            Role::Block => OnDisabled::Block,
        }
    }
}

/// The outcome of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Nothing,
    Stored(u64),
    Loaded(u64),
    Ones,
    Disabled,
    Errno(Errno),
    Sigbus,
}

impl Met {
    pub(super) fn text(self) -> String {
        match self {
            Met::Nothing => "-".to_owned(),
            Met::Stored(value) => format!("Ok, stored {value:#x}"),
            Met::Loaded(value) => format!("loaded {value:#x}"),
            Met::Ones => "loaded 0xffffffffffffffff".to_owned(),
            Met::Disabled => "Err(Disabled)".to_owned(),
            Met::Errno(errno) => format!("-1 {errno:?}"),
            Met::Sigbus => "SIGBUS".to_owned(),
        }
    }

    pub(super) fn reached(self) -> bool {
        matches!(self, Met::Stored(_) | Met::Loaded(_))
    }
}

/// Counts of each outcome since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) reached: u64,
    pub(super) refused: u64,
    pub(super) waited: u64,
}

impl std::ops::Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            reached: self.reached - before.reached,
            refused: self.refused - before.refused,
            waited: self.waited - before.waited,
        }
    }
}

enum Reach {
    /// The other side of a system call, too.
    Mapping(Mapping, File),
    Peer(Peer),
}

pub(super) struct Actor {
    pub(super) role: Role,
    reach: Reach,
    last: Mutex<Met>,
    reached: AtomicU64,
    refused: AtomicU64,
    waited: AtomicU64,
    /// When the access that is under way began, in nanoseconds since `born`; 0 for none.
    began: AtomicU64,
    born: Instant,
    took: Spread,
}

impl Actor {
    pub(super) fn new(role: Role, region: &Region) -> Result<Self, Failed> {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let reach = if role == Role::Peer {
            Reach::Peer(Peer::start(region)?)
        } else {
            let mapping = region.map(MapOptions::new().on_disabled(role.policy()))?;
            Reach::Mapping(mapping, memfd_create(c"revoke-demo", MFdFlags::MFD_CLOEXEC)?.into())
        };
        Ok(Self {
            role,
            reach,
            last: Mutex::new(Met::Nothing),
            reached: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            began: AtomicU64::new(0),
            born: Instant::now(),
            took: Spread::new(),
        })
    }

    /// One access; its outcome is kept for the display. The driver stores `value`, all others load.
    pub(super) fn act(&self, offset: usize, value: u64) -> Met {
        let since = Instant::now();
        self.began.store(self.nanos().max(1), Relaxed);
        let met = self.access(offset, value);
        self.began.store(0, Relaxed);
        let took = since.elapsed();
        let counter = if met.reached() { &self.reached } else { &self.refused };
        counter.fetch_add(1, Relaxed);
        if took > WAITING {
            self.waited.fetch_add(1, Relaxed);
        }
        self.took.record(took);
        *self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = met;
        met
    }

    fn access(&self, offset: usize, value: u64) -> Met {
        match (&self.reach, self.role) {
            (Reach::Peer(peer), _) => match peer.access(offset, Access::Load) {
                Ok(value) => Met::Loaded(value),
                Err(NoValue::Sigbus) => Met::Sigbus,
                Err(NoValue::Errno(errno)) => Met::Errno(errno),
                Err(NoValue::Ended(_)) => Met::Errno(Errno::ESRCH),
            },
            (Reach::Mapping(mapping, _), Role::Driver) => match mapping.write(offset, value) {
                Ok(()) => Met::Stored(value),
                Err(AccessError::Disabled { .. }) => Met::Disabled,
                Err(_) => Met::Errno(Errno::EIO),
            },
            (Reach::Mapping(mapping, file), Role::SystemCall) => {
                raw::load_by_kernel(mapping, offset, file).map_or_else(Met::Errno, Met::Loaded)
            }
            (Reach::Mapping(mapping, _), _) => match raw::load(mapping, offset) {
                u64::MAX => Met::Ones,
                value => Met::Loaded(value),
            },
        }
    }

    /// The page tables of its mapping.
    pub(super) fn page_map(&self, region: &Region) -> io::Result<PageMap> {
        let (process, at) = match &self.reach {
            Reach::Mapping(mapping, _) => (std::process::id(), mapping.as_ptr().addr() as u64),
            Reach::Peer(peer) => (peer.pid(), peer.at()),
        };
        PageMap::open(process, at, region)
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn last(&self) -> Met {
        *self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How long the access under way has been waiting.
    pub(super) fn waiting(&self) -> Option<Duration> {
        let began = self.began.load(Relaxed);
        let waited = Duration::from_nanos(self.nanos().saturating_sub(began));
        (began > 0 && waited > WAITING).then_some(waited)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            reached: self.reached.load(Relaxed),
            refused: self.refused.load(Relaxed),
            waited: self.waited.load(Relaxed),
        }
    }

    /// How long its accesses took.
    pub(super) fn took(&self) -> &Spread {
        &self.took
    }
}
