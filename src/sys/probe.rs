//! What this kernel and this process may do, found out by trying.

use super::map::{self, Advice, Prot};
use super::uffd::{Uffd, UffdFeatures, UffdSource};
use super::{SysError, page_size};
use std::fmt;
use std::os::fd::AsFd;
use std::sync::OnceLock;

bitflags::bitflags! {
    /// One thing a kernel or a process's rights may lack.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Feature: u32 {
        /// A userfaultfd by `/dev/userfaultfd` (Linux 6.1, rights of the device file).
        const UFFD_DEVICE = 1;
        /// A userfaultfd by system call that also sees faults of the kernel (CAP_SYS_PTRACE, or
        /// vm.unprivileged_userfaultfd=1).
        const UFFD_SYSCALL = 1 << 1;
        /// A userfaultfd for user-mode faults only (5.11, no privilege): system calls get EFAULT where they would wait.
        const UFFD_USER_MODE = 1 << 2;
        /// Minor faults on shared memory and `UFFDIO_CONTINUE` (5.14): the strategy Zap.
        const MINOR_SHMEM = 1 << 3;
        /// The same on hugetlb (5.13).
        const MINOR_HUGETLB = 1 << 4;
        /// `UFFD_FEATURE_SIGBUS` (4.14): the faulting thread resolves its own fault.
        const UFFD_SIGBUS = 1 << 5;
        /// `UFFD_FEATURE_EVENT_REMAP` (4.11): registrations survive mremap, so a prepared mapping can be moved in.
        const UFFD_EVENT_REMAP = 1 << 6;
        /// `UFFDIO_POISON` (6.6). Told, not used: see ARCHITECTURE.md.
        const POISON = 1 << 7;
        /// `MREMAP_DONTUNMAP` on shared memory (5.13): the strategy Detach.
        const DONTUNMAP = 1 << 8;
        /// `membarrier(PRIVATE_EXPEDITED)` (4.14): guards without a fence.
        const MEMBARRIER = 1 << 9;
        /// Huge pages of 2 MiB can be had now.
        const HUGETLB_2M = 1 << 10;
    }
}

impl Feature {
    const UFFD: Self = Self::UFFD_DEVICE.union(Self::UFFD_SYSCALL).union(Self::UFFD_USER_MODE);

    fn lines() -> [(Self, &'static str, &'static str); 11] {
        [
            (Self::UFFD_DEVICE, "userfaultfd by /dev/userfaultfd", "Linux 6.1, access to the device file"),
            (Self::UFFD_SYSCALL, "userfaultfd by system call", "CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1"),
            (Self::UFFD_USER_MODE, "userfaultfd, user-mode faults only", "Linux 5.11"),
            (Self::MINOR_SHMEM, "minor faults on shared memory (Zap)", "Linux 5.14"),
            (Self::MINOR_HUGETLB, "minor faults on hugetlb", "Linux 5.13"),
            (Self::UFFD_SIGBUS, "faults resolved by the faulting thread", "Linux 4.14"),
            (Self::UFFD_EVENT_REMAP, "mappings moved with their userfaultfd", "Linux 4.11"),
            (Self::POISON, "UFFDIO_POISON (told, not used)", "Linux 6.6"),
            (Self::DONTUNMAP, "page tables moved aside (Detach)", "Linux 5.13"),
            (Self::MEMBARRIER, "guards without a fence", "Linux 4.14, not refused by seccomp"),
            (Self::HUGETLB_2M, "huge pages of 2 MiB", "vm.nr_hugepages > 0"),
        ]
    }
}

/// What this kernel and this process can do, as [`Support::probe`] found it. `Display` prints a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    features: Feature,
}

static PRETENDED_MISSING: OnceLock<Feature> = OnceLock::new();
static CURRENT: OnceLock<Support> = OnceLock::new();

impl Support {
    /// The process's support, probed once and remembered.
    pub fn current() -> Self {
        *CURRENT.get_or_init(Self::probe)
    }

    /// Tries every feature now, with throw-away descriptors and mappings.
    pub fn probe() -> Self {
        let mut features = Feature::empty();
        for (source, feature) in [
            (UffdSource::Device, Feature::UFFD_DEVICE),
            (UffdSource::Syscall, Feature::UFFD_SYSCALL),
            (UffdSource::UserModeOnly, Feature::UFFD_USER_MODE),
        ] {
            if let Ok(offered) = Uffd::offered(source) {
                features |= feature;
                for (bit, feature) in [
                    (UffdFeatures::MINOR_SHMEM, Feature::MINOR_SHMEM),
                    (UffdFeatures::MINOR_HUGETLBFS, Feature::MINOR_HUGETLB),
                    (UffdFeatures::SIGBUS, Feature::UFFD_SIGBUS),
                    (UffdFeatures::EVENT_REMAP, Feature::UFFD_EVENT_REMAP),
                    (UffdFeatures::POISON, Feature::POISON),
                ] {
                    features.set(feature, features.contains(feature) || offered.contains(bit));
                }
            }
        }
        features.set(Feature::DONTUNMAP, try_dontunmap().is_ok());
        features.set(Feature::MEMBARRIER, super::barrier::Barriers::best() != super::barrier::Barriers::Fences);
        features.set(Feature::HUGETLB_2M, try_hugetlb(2 << 20).is_ok());
        let missing = PRETENDED_MISSING.get().copied().unwrap_or(Feature::empty());
        Self { features: features - missing }
    }

    /// From now on this process behaves as if the kernel lacked `missing`, so that fallbacks can be tested on a
    /// kernel that has everything. Answers false, and changes nothing, once anything has been probed.
    pub fn pretend_missing(missing: Feature) -> bool {
        CURRENT.get().is_none() && PRETENDED_MISSING.set(missing).is_ok()
    }

    /// Is all of `features` there?
    pub fn has(&self, features: Feature) -> bool {
        self.features.contains(features)
    }

    /// Everything that is there.
    pub fn features(&self) -> Feature {
        self.features
    }

    /// Is there a userfaultfd of any kind?
    pub fn userfaultfd(&self) -> bool {
        self.features.intersects(Feature::UFFD)
    }

    /// Does a userfaultfd see the faults of system calls too? Without that, a system call that meets a page which
    /// is not mapped, or a region that is busy, gets EFAULT where a load would wait.
    pub fn sees_kernel_faults(&self) -> bool {
        self.features.intersects(Feature::UFFD_DEVICE | Feature::UFFD_SYSCALL)
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (feature, what, needs) in Feature::lines() {
            let there = if self.has(feature) { "yes" } else { "no " };
            writeln!(f, "{there}  {what:<40} {needs}")?;
        }
        if !self.sees_kernel_faults() {
            let what = if self.userfaultfd() { "system calls get EFAULT where loads wait" } else { "nothing can wait" };
            writeln!(f, "     without a full userfaultfd {what}; Detach and Replace revoke all the same")?;
        }
        Ok(())
    }
}

pub(crate) fn pretends_missing(source: UffdSource) -> bool {
    let feature = match source {
        UffdSource::Device => Feature::UFFD_DEVICE,
        UffdSource::Syscall => Feature::UFFD_SYSCALL,
        UffdSource::UserModeOnly => Feature::UFFD_USER_MODE,
        UffdSource::HandedIn => return false,
    };
    PRETENDED_MISSING.get().is_some_and(|missing| missing.contains(feature))
}

/// Moves a page of a memfd aside and looks whether its place stayed mapped.
#[expect(unsafe_code, reason = "UNSAFETY: maps and moves pages that only this function knows")]
fn try_dontunmap() -> Result<(), SysError> {
    let page = page_size();
    let fd = map::memfd(c"revocable-probe", page as u64, 0)?;
    let here = map::reserve(page, page)?;
    // SAFETY: the reservation just made, known to nothing else.
    let mapped = unsafe { map::map_shared(here, fd.as_fd(), 0, Prot::Read) };
    // SAFETY: as above.
    let moved = mapped.and_then(|()| unsafe { map::move_aside(here, 0) });
    // SAFETY: as above; a throw-away advice that tells whether the old place is still mapped.
    let left = unsafe { map::advise(here, Advice::DontDump) };
    for page in moved.into_iter().chain([here]) {
        // SAFETY: as above, used no more.
        let _ = unsafe { map::unmap(page) };
    }
    moved.and(left)
}

#[expect(unsafe_code, reason = "UNSAFETY: maps a huge page that only this function knows")]
fn try_hugetlb(size: usize) -> Result<(), SysError> {
    let fd = map::memfd(c"revocable-probe", size as u64, size)?;
    let range = map::reserve(size, size)?;
    // SAFETY: the reservation just made, known to nobody else. Mapping takes the huge page from the pool, or fails.
    let mapped = unsafe { map::map_shared(range, fd.as_fd(), 0, Prot::Read) };
    // SAFETY: as above, used no more.
    let _ = unsafe { map::unmap(range) };
    mapped
}
