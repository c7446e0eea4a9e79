//! The file that is a region's memory.

use crate::protocol::policy::OnDisabled;
use crate::region::error::BuildError;
use crate::sys::map::Sealed;
use crate::sys::{SysError, map, page_size};
use crate::view::Strategy;
use crate::window::{Emptied, Window};
use nix::errno::Errno;
use nix::sys::statfs::{FsType, fstatfs};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The file that a region's memory is.
///
/// ```
/// use revocable_mmio::{Backing, BuildError, Region};
/// use std::os::fd::AsFd;
/// # use nix::sys::memfd::{MFdFlags, memfd_create};
///
/// let file = memfd_create(c"ram", MFdFlags::empty())?;
/// nix::unistd::ftruncate(&file, 1 << 20)?;
/// let region = Region::builder(64 << 10).backing(Backing::file(file.as_fd(), 0)?).build()?;
/// region.owner().write(0, 7_u32)?; // in the file
///
/// let too_long = Region::builder(2 << 20).backing(Backing::file(file.as_fd(), 0)?).build();
/// assert!(matches!(too_long, Err(BuildError::FileTooShort { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Backing {
    /// A memfd of the region's own, sealed against shrinking, growing and execution. The default.
    #[default]
    Memfd,
    /// A memfd of huge pages of 2 MiB, from the system's pool (`vm.nr_hugepages`).
    Huge2M,
    /// A memfd of huge pages of 1 GiB, from the system's pool.
    Huge1G,
    /// The caller's file, from `offset` (in bytes) on: a memfd, a file on tmpfs or hugetlbfs, a BAR of a vfio device, any
    /// file that can be mapped shared. Any other holder of the file reaches the memory through it at any time, and can
    /// truncate it unless it is sealed against shrinking.
    ///
    /// A file that is open for reading only, or sealed against writing, makes a region that can be read only
    /// ([`RegionBuilder::read_only`](crate::RegionBuilder::read_only)).
    File {
        /// The file, open for reading at least.
        fd: OwnedFd,
        /// Where the region starts in the file, in bytes.
        offset: u64,
        /// `Some` for a device file: its size is not checked, it is mapped by the strategy Replace, and this says what
        /// happens to `fd` on revocation.
        device: Option<OnRevoke>,
    },
}

/// What happens to a device's descriptor on revocation.
///
/// ```
/// use revocable_mmio::{Backing, OnRevoke, Region};
/// # use nix::sys::memfd::{MFdFlags, memfd_create};
/// # let bar = memfd_create(c"bar", MFdFlags::empty())?;
/// # nix::unistd::ftruncate(&bar, 4096)?;
///
/// // A BAR of a vfio device: the device can be unbound while the region is disabled.
/// let backing = Backing::File { fd: bar.into(), offset: 0, device: Some(OnRevoke::Drop) };
/// let region = Region::builder(4096).backing(backing).build()?;
/// assert!(region.owner().is_empty()); // a mapping of it would pin the device
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRevoke {
    /// Kept, so that `enable()` can map it again. It pins the device.
    Keep,
    /// Closed: nothing of the region pins the device any more, and its owner's view is empty. `enable()` needs
    /// [`Region::supply`](crate::Region::supply) first.
    Drop,
}

/// The kind of file that a region's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackingKind {
    /// Shared memory: userfaultfd can register it, pages are in the page cache.
    Shmem,
    Hugetlb,
    /// Anything else: a device, an ordinary file.
    Other,
}

#[derive(Debug)]
pub(crate) struct File {
    pub(crate) fd: OwnedFd,
    pub(crate) offset: u64,
    /// Page size, in bytes.
    pub(crate) page: usize,
    pub(crate) kind: BackingKind,
    pub(crate) on_revoke: OnRevoke,
    /// True if the descriptor can be mapped for stores.
    pub(crate) writable: bool,
}

// statfs(2). Its type differs between libcs (32 or 64 bits, signed or not); the bits are the same.
const TMPFS_MAGIC: FsType = FsType(0x0102_1994_u32 as _);
const HUGETLBFS_MAGIC: FsType = FsType(0x9584_58f6_u32 as _);

impl Backing {
    pub(crate) fn open(self, name: &str, len: usize) -> Result<File, BuildError> {
        let own = |huge: usize| -> Result<File, BuildError> {
            let page = if huge > 0 { huge } else { page_size() };
            check(len, 0, page)?;
            let title = CString::new(name).map_err(|_| BuildError::Name(name.to_owned()))?;
            let fd = map::memfd(&title, len as u64, huge)?;
            map::seal(fd.as_fd(), Sealed::Size)?;
            let kind = if huge > 0 { BackingKind::Hugetlb } else { BackingKind::Shmem };
            Ok(File { fd, offset: 0, page, kind, on_revoke: OnRevoke::Keep, writable: true })
        };
        match self {
            Backing::Memfd => own(0),
            Backing::Huge2M => own(2 << 20),
            Backing::Huge1G => own(1 << 30),
            Backing::File { fd, offset, device } => {
                if name.contains('\0') {
                    return Err(BuildError::Name(name.to_owned()));
                }
                let (kind, page) = kind_of(fd.as_fd())?;
                let kind = if device.is_some() { BackingKind::Other } else { kind };
                check(len, offset, page)?;
                if device.is_none() {
                    let file = size_of(fd.as_fd())?;
                    let needed = offset + len as u64;
                    if file < needed {
                        return Err(BuildError::FileTooShort { file, needed });
                    }
                }
                let writable = map::may_write(fd.as_fd())?;
                Ok(File { fd, offset, page, kind, on_revoke: device.unwrap_or(OnRevoke::Keep), writable })
            }
        }
    }

    /// A window of the region's own, for a region that other processes map.
    pub(crate) fn open_window(self, name: &str, len: usize, peers: OnDisabled) -> Result<Window, BuildError> {
        if !matches!(self, Backing::Memfd) {
            let why = "the memory of a shared region is a memfd of its own (Backing::Memfd)";
            return Err(BuildError::Strategy { strategy: Strategy::Withdraw, why, source: None });
        }
        check(len, 0, page_size())?;
        let title = |of: &str| CString::new(format!("{name}{of}")).map_err(|_| BuildError::Name(name.to_owned()));
        let emptied = if peers == OnDisabled::AllOnes { Emptied::Ones } else { Emptied::Short };
        Ok(Window::make([&title("")?, &title("-vault")?], len, emptied)?)
    }

    /// The caller's file, by a borrowed descriptor, which is duplicated.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn file(fd: BorrowedFd<'_>, offset: u64) -> Result<Self, BuildError> {
        Ok(Backing::File { fd: map::dup(fd)?, offset, device: None })
    }
}

fn check(len: usize, offset: u64, page: usize) -> Result<(), BuildError> {
    if len == 0 {
        return Err(BuildError::Empty { page });
    }
    for (what, value) in [("length", len as u64), ("offset", offset)] {
        if value % page as u64 != 0 {
            return Err(BuildError::Unaligned { what, value, page });
        }
    }
    // Twice: Detach needs as much again.
    let fits = isize::try_from(len).is_ok_and(|len| len.checked_mul(2).is_some())
        && offset.checked_add(len as u64).is_some_and(|end| i64::try_from(end).is_ok());
    if fits { Ok(()) } else { Err(BuildError::TooLarge { offset, len }) }
}

fn kind_of(fd: BorrowedFd<'_>) -> Result<(BackingKind, usize), SysError> {
    let fs = fstatfs(fd).map_err(|e| SysError::new("fstatfs", e))?;
    Ok(match fs.filesystem_type() {
        TMPFS_MAGIC => (BackingKind::Shmem, page_size()),
        HUGETLBFS_MAGIC => (BackingKind::Hugetlb, usize::try_from(fs.block_size()).unwrap_or(page_size())),
        _ => (BackingKind::Other, page_size()),
    })
}

fn size_of(fd: BorrowedFd<'_>) -> Result<u64, SysError> {
    let stat = nix::sys::stat::fstat(fd).map_err(|e| SysError::new("fstat", e))?;
    u64::try_from(stat.st_size).map_err(|_| SysError::new("fstat", Errno::EOVERFLOW))
}
