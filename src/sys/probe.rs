//! What this kernel and this process may do, found out by trying.
//!
//! Results that cannot change are remembered: that a feature is there, and that the kernel does not know it. A shortage
//! (descriptors, memory, mappings) passes, and rights can be granted, so those are tried again whenever a feature is asked
//! for, and the result is the errno of that try.

use super::feature::{FEATURES, Feature, pretends_missing};
use super::identity::PerProcess;
use super::map::{self, Advice, Prot};
use super::membarrier;
use super::uffd::{Uffd, UffdFeatures, UffdSource};
use super::{Addr, SysError, page_size};
use nix::errno::Errno;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::OnceLock;

/// The features of this kernel that this process can use, as [`Support::probe`] found them. `Display` prints a table. The
/// guide's page on [kernels and privileges](crate::guide::kernels) says what each lack costs.
///
/// ```
/// use revocable_mmio::{Feature, Support};
///
/// let support = Support::probe();
/// print!("{support}"); // a table: what is there, and what each needs
/// if !support.sees_kernel_faults() {
///     println!("a system call on a busy region gets EFAULT instead of waiting");
/// }
/// if !support.has(Feature::DONTUNMAP) && !support.userfaultfd() {
///     println!("regions are revoked by Strategy::Replace");
/// }
/// let now = Support::current(); // tries again only what may have changed
/// println!("{:?}", now.features());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    features: Feature,
}

/// Results that cannot change any more, by the feature's bit. Per process: a forked child has none of its parent's
/// registrations.
static KNOWN: PerProcess<[OnceLock<Result<(), SysError>>; FEATURES]> = PerProcess::new(Default::default);

impl Support {
    /// What the process can do now. A feature that is there is remembered, and so is one that the kernel does not know; a
    /// feature that was refused for want of rights, descriptors or memory is tried again.
    pub fn current() -> Self {
        Self::of(|feature| Self::check(feature).is_ok())
    }

    /// Tries every feature now, with throw-away descriptors and mappings.
    pub fn probe() -> Self {
        Self::of(|feature| attempt(feature).is_ok())
    }

    fn of(there: impl Fn(Feature) -> bool) -> Self {
        Self { features: Feature::all().iter().filter(|feature| there(*feature)).collect() }
    }

    /// Checks whether one feature is there.
    ///
    /// # Errors
    /// The error of the feature's trial: of this one, or of an earlier one that is final.
    pub(crate) fn check(feature: Feature) -> Result<(), SysError> {
        let known = &KNOWN.get()[feature.bits().trailing_zeros() as usize];
        if let Some(found) = known.get() {
            return *found;
        }
        // Two threads that try at the same time find the same.
        let found = attempt(feature);
        if found.map_or_else(|e| e.is_lasting(), |()| true) {
            let _ = known.set(found);
        }
        found
    }

    /// True if all of `features` are there.
    pub fn has(&self, features: Feature) -> bool {
        self.features.contains(features)
    }

    /// All features that are there.
    pub fn features(&self) -> Feature {
        self.features
    }

    /// True if there is a userfaultfd of any kind.
    pub fn userfaultfd(&self) -> bool {
        self.features.intersects(Feature::UFFD)
    }

    /// True if a userfaultfd also sees the faults of system calls. If not, a system call gets EFAULT where a load would
    /// wait: at a page that is not mapped, or a region that is busy.
    pub fn sees_kernel_faults(&self) -> bool {
        self.features.intersects(Feature::UFFD_DEVICE | Feature::UFFD_SYSCALL)
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (feature, what, needs) in Feature::lines() {
            let there = if self.has(feature) { "yes" } else { "no " };
            writeln!(f, "{there}  {what:<35} {needs}")?;
        }
        if !self.sees_kernel_faults() {
            let what = if self.userfaultfd() { "system calls get EFAULT where loads wait" } else { "nothing can wait" };
            writeln!(f, "     without a full userfaultfd {what};\n     Detach and Replace revoke all the same")?;
        }
        Ok(())
    }
}

fn attempt(feature: Feature) -> Result<(), SysError> {
    if pretends_missing(feature) {
        return Err(SysError::new("pretended", Errno::ENOSYS));
    }
    let opens = |source| Uffd::offered(source).map(drop);
    let offers = |bit| match Uffd::offered_here() {
        Ok(offered) if offered.contains(bit) => Ok(()),
        Ok(_) => Err(SysError::new("UFFDIO_API", Errno::EINVAL)),
        Err(e) => Err(e),
    };
    match feature {
        f if f == Feature::UFFD_DEVICE => opens(UffdSource::Device),
        f if f == Feature::UFFD_SYSCALL => opens(UffdSource::Syscall),
        f if f == Feature::UFFD_USER_MODE => opens(UffdSource::UserModeOnly),
        f if f == Feature::MINOR_SHMEM => offers(UffdFeatures::MINOR_SHMEM),
        f if f == Feature::MINOR_HUGETLB => offers(UffdFeatures::MINOR_HUGETLBFS),
        f if f == Feature::UFFD_SIGBUS => offers(UffdFeatures::SIGBUS),
        f if f == Feature::UFFD_EVENT_REMAP => offers(UffdFeatures::EVENT_REMAP),
        f if f == Feature::DONTUNMAP => try_dontunmap(),
        f if f == Feature::MEMBARRIER => membarrier::register().and_then(|()| membarrier::barrier()),
        _ => try_hugetlb(2 << 20),
    }
}

/// Moves a page of a memfd aside and checks whether its old address is still mapped.
#[expect(unsafe_code, reason = "UNSAFETY: moves and unmaps pages that only this function knows")]
fn try_dontunmap() -> Result<(), SysError> {
    let page = page_size();
    let fd = map::memfd(c"revocable-probe", page as u64, 0)?;
    let here = map::map_new(Addr(0), page, fd.as_fd(), 0, Prot::Read)?;
    // SAFETY: the mapping just made, known to nothing else.
    let moved = unsafe { map::move_aside(here, Addr(0)) };
    // SAFETY: as above; a throw-away advice that shows whether the old address is still mapped.
    let left = unsafe { map::advise(here, Advice::DontDump) };
    for page in moved.into_iter().chain([here]) {
        // SAFETY: as above, used no more.
        let _ = unsafe { map::unmap(page) };
    }
    moved.and(left)
}

#[expect(unsafe_code, reason = "UNSAFETY: unmaps a huge page that only this function knows")]
fn try_hugetlb(size: usize) -> Result<(), SysError> {
    let fd = map::memfd(c"revocable-probe", size as u64, size)?;
    // Takes the huge page from the pool, or fails.
    let mapped = map::map_new(Addr(0), size, fd.as_fd(), 0, Prot::Read)?;
    // SAFETY: the mapping just made, known to nothing else.
    let _ = unsafe { map::unmap(mapped) };
    Ok(())
}

#[cfg(revocable_inject)]
impl Support {
    /// From now on the crate behaves as if the kernel lacked `missing`, so that fallbacks can be tested on a kernel that
    /// has everything. To be called before the first region is built.
    pub fn pretend_missing(missing: Feature) {
        super::feature::PRETENDED_MISSING.store(missing.bits(), std::sync::atomic::Ordering::SeqCst);
    }
}
