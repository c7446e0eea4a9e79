//! Features that a kernel or a process may lack.

bitflags::bitflags! {
    /// Features that a kernel, or the rights of a process, may lack.
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
        /// `MREMAP_DONTUNMAP` on shared memory (5.13): the strategy Detach.
        const DONTUNMAP = 1 << 7;
        /// `membarrier(PRIVATE_EXPEDITED)` (4.14): guards without a fence.
        const MEMBARRIER = 1 << 8;
        /// Huge pages of 2 MiB are free now.
        const HUGETLB_2M = 1 << 9;
    }
}

impl Feature {
    pub(super) const UFFD: Self = Self::UFFD_DEVICE.union(Self::UFFD_SYSCALL).union(Self::UFFD_USER_MODE);

    pub(super) fn lines() -> [(Self, &'static str, &'static str); 10] {
        [
            (Self::UFFD_DEVICE, "userfaultfd by /dev/userfaultfd", "Linux 6.1, access to the device file"),
            (Self::UFFD_SYSCALL, "userfaultfd by system call", "root, or vm.unprivileged_userfaultfd=1"),
            (Self::UFFD_USER_MODE, "userfaultfd, user-mode faults only", "Linux 5.11"),
            (Self::MINOR_SHMEM, "minor faults on shared memory (Zap)", "Linux 5.14"),
            (Self::MINOR_HUGETLB, "minor faults on hugetlb", "Linux 5.13"),
            (Self::UFFD_SIGBUS, "faults resolved by their own thread", "Linux 4.14"),
            (Self::UFFD_EVENT_REMAP, "mappings moved with a userfaultfd", "Linux 4.11"),
            (Self::DONTUNMAP, "page tables moved aside (Detach)", "Linux 5.13"),
            (Self::MEMBARRIER, "guards without a fence", "Linux 4.14, not refused by seccomp"),
            (Self::HUGETLB_2M, "huge pages of 2 MiB", "vm.nr_hugepages > 0"),
        ]
    }
}

pub(super) const FEATURES: usize = Feature::all().bits().count_ones() as usize;

#[cfg(revocable_inject)]
pub(super) static PRETENDED_MISSING: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// True if a test pretends that the kernel lacks a feature; never in an ordinary build.
pub(crate) fn pretends_missing(feature: Feature) -> bool {
    #[cfg(revocable_inject)]
    let missing = PRETENDED_MISSING.load(std::sync::atomic::Ordering::SeqCst);
    #[cfg(not(revocable_inject))]
    let missing = 0;
    missing & feature.bits() != 0
}
