//! Every strategy with every policy over every backing.

use super::{at_its_best, is_root, page_size, read_text, skip};
use nix::fcntl::{Flock, FlockArg};
use revocable_mmio::{
    Backing, Feature, MapOptions, Mapping, OnDisabled, OnRevoke, Region, RegionBuilder, Strategy, Support,
};
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The kind of a region's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Memfd,
    /// Huge pages of 2 MiB.
    Huge,
    /// A file on /dev/shm that the caller passes in, from its second page on.
    ShmFile,
    /// A file that is passed in as a device's.
    Device,
}

/// One combination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) strategy: Strategy,
    pub(crate) policy: OnDisabled,
    pub(crate) memory: Memory,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} {:?} {:?}]", self.strategy, self.policy, self.memory)
    }
}

pub(crate) const STRATEGIES: [Strategy; 4] = [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw];
pub(crate) const POLICIES: [OnDisabled; 3] = [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block];
const MEMORIES: [Memory; 4] = [Memory::Memfd, Memory::Huge, Memory::ShmFile, Memory::Device];

impl Case {
    /// True if the combination must work here.
    pub(crate) fn is_legal(&self) -> bool {
        let support = Support::current();
        let strategy = match (self.strategy, self.memory) {
            (Strategy::Zap, Memory::Huge) => support.userfaultfd() && support.has(Feature::MINOR_HUGETLB),
            (Strategy::Zap, Memory::Memfd | Memory::ShmFile) => {
                support.userfaultfd() && support.has(Feature::MINOR_SHMEM)
            }
            (Strategy::Detach, Memory::Memfd | Memory::ShmFile) => support.has(Feature::DONTUNMAP),
            (Strategy::Withdraw, memory) => memory == Memory::Memfd,
            (Strategy::Zap | Strategy::Detach, _) => false,
            _ => true,
        };
        let can_block = support.has(Feature::UFFD_USER_MODE | Feature::UFFD_EVENT_REMAP);
        strategy && (self.policy != OnDisabled::Block || can_block)
    }

    /// True if system calls wait during a reset, as loads do.
    pub(crate) fn kernel_waits(&self) -> bool {
        Support::current().sees_kernel_faults()
    }

    /// True if system calls can use an enabled region, whichever pages are mapped. Under Zap a userfaultfd for
    /// user-mode faults refuses them.
    pub(crate) fn kernel_serves(&self) -> bool {
        self.strategy != Strategy::Zap || self.kernel_waits()
    }

    /// True if accesses wait while the region is busy. Without a userfaultfd none can.
    pub(crate) fn can_wait(&self) -> bool {
        let support = Support::current();
        support.userfaultfd() && support.has(Feature::UFFD_EVENT_REMAP)
    }

    pub(crate) fn page(&self) -> usize {
        if self.memory == Memory::Huge { 2 << 20 } else { page_size() }
    }

    /// A builder for a region of `pages` pages.
    pub(crate) fn builder(&self, pages: usize) -> RegionBuilder {
        let len = pages * self.page();
        let backing = match self.memory {
            Memory::Memfd => Backing::Memfd,
            Memory::Huge => Backing::Huge2M,
            Memory::ShmFile => {
                let fd = file_in("/dev/shm", len + page_size());
                Backing::File { fd, offset: page_size() as u64, device: None }
            }
            Memory::Device => {
                let dir = std::env::temp_dir();
                let fd = file_in(&dir.to_string_lossy(), len);
                Backing::File { fd, offset: 0, device: Some(OnRevoke::Keep) }
            }
        };
        Region::builder(len).backing(backing).strategy(self.strategy).name("matrix")
    }

    /// An enabled region of `pages` pages.
    pub(crate) fn region(&self, pages: usize) -> Region {
        self.builder(pages).build().unwrap_or_else(|e| panic!("{self} builds: {e}"))
    }

    /// A mapping of all of it, with this case's policy.
    pub(crate) fn map(&self, region: &Region) -> Mapping {
        region.map(self.options()).unwrap_or_else(|e| panic!("{self} maps: {e}"))
    }

    pub(crate) fn options(&self) -> MapOptions {
        MapOptions::new().on_disabled(self.policy)
    }
}

/// A nameless file of `len` bytes in a directory.
pub(crate) fn file_in(dir: &str, len: usize) -> OwnedFd {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = format!("{dir}/revocable-{}-{number}", std::process::id());
    let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file can be made");
    std::fs::remove_file(&path).expect("it was just made");
    file.set_len(len as u64).expect("it grows");
    file.into()
}

/// Runs `test` for every legal combination.
pub(crate) fn every_case(test: impl Fn(&Case)) {
    cases(|case| case.is_legal(), test);
}

/// Runs `test` for every legal combination with one of these policies.
pub(crate) fn every_case_with(policies: &[OnDisabled], test: impl Fn(&Case)) {
    cases(|case| case.is_legal() && policies.contains(&case.policy), test);
}

/// Runs `test` for every legal combination. Combinations over one kind of memory run at the same time, for tests that
/// mostly wait. Huge pages are few, so combinations over them run one by one.
pub(crate) fn every_case_at_once(test: impl Fn(&Case) + Sync) {
    every_case_at_once_with(&POLICIES, test);
}

/// The same with one of these policies.
pub(crate) fn every_case_at_once_with(policies: &[OnDisabled], test: impl Fn(&Case) + Sync) {
    by_memory(
        |case| case.is_legal() && policies.contains(&case.policy),
        |cases| match cases {
            [Case { memory: Memory::Huge, .. }, ..] => cases.iter().for_each(&test),
            _ => thread::scope(|scope| {
                let threads: Vec<_> = cases.iter().map(|case| scope.spawn(|| test(case))).collect();
                for thread in threads {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                }
            }),
        },
    );
}

/// Runs `test` for every combination that must not work here.
pub(crate) fn every_illegal_case(test: impl Fn(&Case)) {
    cases(|case| !case.is_legal(), test);
}

fn cases(wanted: impl Fn(&Case) -> bool, test: impl Fn(&Case)) {
    by_memory(wanted, |cases| cases.iter().for_each(&test));
}

/// Runs `tests` once for each kind of memory, with its wanted combinations.
fn by_memory(wanted: impl Fn(&Case) -> bool, tests: impl Fn(&[Case])) {
    for memory in MEMORIES {
        let all = STRATEGIES.into_iter().flat_map(|strategy| POLICIES.map(|policy| Case { strategy, policy, memory }));
        let cases: Vec<Case> = all.filter(&wanted).collect();
        let huge = if memory == Memory::Huge {
            let Some(pages) = HugePages::take(16) else {
                let could = at_its_best() && std::env::var_os("REVOCABLE_VM").is_none();
                skip("no huge pages of 2 MiB can be had: hugetlb is left out", could);
                continue;
            };
            Some(pages)
        } else {
            None
        };
        tests(&cases);
        drop(huge);
    }
}

/// Of pages of 2 MiB; vm.nr_hugepages is of the machine's usual size, which is 32 MiB where base pages have 16 KiB.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// Huge pages, taken from the system until this is dropped. Only one test of all processes has them at a time.
pub(crate) struct HugePages {
    before: Option<usize>,
    _one: Flock<File>,
}

impl HugePages {
    pub(crate) fn take(count: usize) -> Option<Self> {
        let one = Flock::lock(File::open(POOL).ok()?, FlockArg::LockExclusive).ok()?;
        let free = || -> usize { read_text(FREE).trim().parse().unwrap_or(0) };
        if free() >= count {
            return Some(Self { before: None, _one: one });
        }
        let before: usize = read_text(POOL).trim().parse().ok()?;
        if !is_root() || std::fs::write(POOL, (before + count).to_string()).is_err() {
            return None;
        }
        let pages = Self { before: Some(before), _one: one };
        (free() >= count).then_some(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            let _ = std::fs::write(POOL, before.to_string());
        }
    }
}

/// A descriptor of a region's own memory, as other code in this process can get it.
pub(crate) fn dup(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().expect("descriptors are left")
}
