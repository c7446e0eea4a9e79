//! The userfaultfd ABI, see userfaultfd(2), ioctl_userfaultfd(2).
//!
//! UNSAFETY: ioctls whose argument is a structure of linux-raw-sys's; each passes a live, initialised one.
#![expect(unsafe_code, reason = "userfaultfd ioctls have no safe form")]

mod handed;
pub(crate) mod message;

pub(crate) use message::{FaultMessage, Messages};

use super::direct;
use super::feature::Feature;
use super::identity::Identity;
use super::known::KnownFile;
use super::{AddrRange, SysError, left_out, may_fail};
use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl as nr;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

bitflags::bitflags! {
    /// `UFFD_FEATURE_*`: what an API handshake offers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct UffdFeatures: u64 {
        const EVENT_REMAP = raw::UFFD_FEATURE_EVENT_REMAP as u64;
        const SIGBUS = raw::UFFD_FEATURE_SIGBUS as u64;
        const THREAD_ID = raw::UFFD_FEATURE_THREAD_ID as u64;
        const MINOR_HUGETLBFS = raw::UFFD_FEATURE_MINOR_HUGETLBFS as u64;
        const MINOR_SHMEM = raw::UFFD_FEATURE_MINOR_SHMEM as u64;
        const EXACT_ADDRESS = raw::UFFD_FEATURE_EXACT_ADDRESS as u64;
    }
}

impl UffdFeatures {
    /// Asked for only if the kernel has them: an unknown feature makes the kernel refuse the whole handshake (EINVAL). A
    /// strategy that cannot do without one is not chosen, see [`Support`](crate::Support).
    const DISPENSABLE: Self =
        Self::THREAD_ID.union(Self::MINOR_HUGETLBFS).union(Self::MINOR_SHMEM).union(Self::EXACT_ADDRESS);

    fn within(self, offered: Self) -> Self {
        self.difference(Self::DISPENSABLE.difference(offered))
    }
}

/// Where a userfaultfd is from, which decides which faults it sees.
///
/// ```
/// use revocable_mmio::{Monitor, UffdSource};
///
/// # if !revocable_mmio::Support::current().userfaultfd() {
/// #     eprintln!("SKIP: no userfaultfd");
/// #     return Ok(());
/// # }
/// if Monitor::shared()?.source() == UffdSource::UserModeOnly {
///     println!("system calls get EFAULT where loads would wait");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UffdSource {
    /// `/dev/userfaultfd` (6.1), by the rights of the device file; also sees faults of system calls.
    Device,
    /// The system call with full rights (CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1).
    Syscall,
    /// Opened by other code, in a way that is not known.
    HandedIn,
    /// `UFFD_USER_MODE_ONLY` (5.11), open to anyone: a system call that would fault gets EFAULT instead.
    UserModeOnly,
}

impl UffdSource {
    fn feature(self) -> Option<Feature> {
        match self {
            Self::Device => Some(Feature::UFFD_DEVICE),
            Self::Syscall => Some(Feature::UFFD_SYSCALL),
            Self::UserModeOnly => Some(Feature::UFFD_USER_MODE),
            Self::HandedIn => None,
        }
    }
}

/// A userfaultfd. It serves the address space of the process that made it, and no other. In a forked child it refuses, since
/// its requests would take effect in the parent.
#[derive(Debug)]
pub(crate) struct Uffd {
    file: KnownFile,
    made_by: Identity,
}

/// How far one `UFFDIO_CONTINUE` came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Continued {
    /// This many bytes from the start were mapped, and their waiters were woken. If it is fewer than requested, go on after
    /// them.
    Bytes(usize),
    /// The first page was mapped already; no waiter was woken.
    AlreadyMapped,
    /// The file has no page there (a hole).
    Hole,
    /// No registered mapping there (any more), or the range crosses its edge.
    NotRegistered,
    /// An address-space event is pending; try again.
    TryAgain,
}

impl Uffd {
    /// Opens a userfaultfd in the best way that this process is allowed.
    pub(crate) fn open(features: UffdFeatures) -> Result<(Self, UffdSource), SysError> {
        let mut refused = SysError::new("userfaultfd", Errno::ENOSYS);
        for source in [UffdSource::Device, UffdSource::Syscall, UffdSource::UserModeOnly] {
            match Self::open_by(source, features) {
                Ok(uffd) => return Ok((uffd, source)),
                // A shortage of descriptors or memory is not a matter of rights: trying a weaker way would hide it.
                Err(e) if e.is_passing() => return Err(e),
                Err(e) => refused = e,
            }
        }
        Err(refused)
    }

    pub(crate) fn open_by(source: UffdSource, features: UffdFeatures) -> Result<Self, SysError> {
        let uffd = Self::create(source)?;
        uffd.handshake(features)?;
        Ok(uffd)
    }

    fn create(source: UffdSource) -> Result<Self, SysError> {
        if source.feature().is_some_and(super::feature::pretends_missing) {
            return Err(SysError::new("userfaultfd", Errno::ENOSYS));
        }
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let raw = match source {
            UffdSource::Device => Self::from_device(flags)?,
            UffdSource::Syscall => Self::from_syscall(flags)?,
            UffdSource::UserModeOnly => Self::from_syscall(flags | raw::UFFD_USER_MODE_ONLY as libc::c_int)?,
            UffdSource::HandedIn => return Err(SysError::new("userfaultfd", Errno::EINVAL)),
        };
        // SAFETY: a descriptor that the kernel just gave to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Self::made_here(fd)
    }

    fn made_here(fd: OwnedFd) -> Result<Self, SysError> {
        Identity::prepare()?;
        Ok(Self { file: KnownFile::new(fd), made_by: Identity::current() })
    }

    /// False if the descriptor was closed, or is another file by now, or if this is a forked child.
    pub(crate) fn is_open(&self) -> bool {
        self.check_open().is_ok()
    }

    /// # Errors
    /// ESRCH in a forked child; what fstat(2) answers, or EBADF if the number is another file's by now.
    pub(crate) fn check_open(&self) -> Result<(), SysError> {
        self.here("fstat")?;
        self.file.get().map(drop)
    }

    fn here(&self, call: &'static str) -> Result<BorrowedFd<'_>, SysError> {
        match self.made_by.is_current() {
            true => Ok(self.file.unchecked()),
            false => Err(SysError::new(call, Errno::ESRCH)),
        }
    }

    fn from_device(flags: libc::c_int) -> Result<libc::c_int, SysError> {
        const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;
        may_fail("open(/dev/userfaultfd)")?;
        let dev = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd")
            .map_err(|e| SysError::new("open(/dev/userfaultfd)", Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        // SAFETY: the argument is a number, not a pointer.
        let raw = unsafe { libc::ioctl(dev.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        if raw < 0 { Err(SysError::last("USERFAULTFD_IOC_NEW")) } else { Ok(raw) }
    }

    fn from_syscall(flags: libc::c_int) -> Result<libc::c_int, SysError> {
        may_fail("userfaultfd")?;
        // SAFETY: takes a number and returns a descriptor.
        let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        libc::c_int::try_from(raw).ok().filter(|fd| *fd >= 0).ok_or_else(|| SysError::last("userfaultfd"))
    }

    /// `UFFDIO_API`, once per descriptor. Returns the features that the kernel offers.
    fn handshake(&self, features: UffdFeatures) -> Result<UffdFeatures, SysError> {
        let features = match features.intersects(UffdFeatures::DISPENSABLE).then(Self::offered_here) {
            None => features,
            Some(Ok(offered)) => features.within(offered),
            Some(Err(e)) if e.is_passing() => return Err(e),
            // This process has no right to ask: the descriptor is from elsewhere.
            Some(Err(_)) => features,
        };
        let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features: features.bits(), ioctls: 0 };
        self.ioctl("UFFDIO_API", nr::UFFDIO_API, &mut api)?;
        Ok(UffdFeatures::from_bits_truncate(api.features))
    }

    /// The features that the kernel offers, to every process alike; remembered once they are known.
    pub(crate) fn offered_here() -> Result<UffdFeatures, SysError> {
        // No lock, which a forked child could inherit held. Relaxed: all threads find the same. 0: not known yet.
        static OFFERED: AtomicU64 = AtomicU64::new(0);
        match OFFERED.load(Ordering::Relaxed) {
            0 => {
                let mut refused = SysError::new("userfaultfd", Errno::ENOSYS);
                for source in [UffdSource::Device, UffdSource::Syscall, UffdSource::UserModeOnly] {
                    match Self::offered(source) {
                        Ok(offered) => {
                            OFFERED.store(offered.bits(), Ordering::Relaxed);
                            return Ok(offered);
                        }
                        Err(e) if e.is_passing() => return Err(e),
                        Err(e) => refused = e,
                    }
                }
                Err(refused)
            }
            known => Ok(UffdFeatures::from_bits_truncate(known)),
        }
    }

    /// The features that the kernel offers, from a throw-away descriptor (a handshake can be done once).
    pub(crate) fn offered(source: UffdSource) -> Result<UffdFeatures, SysError> {
        Self::create(source)?.handshake(UffdFeatures::empty())
    }

    fn ioctl<T>(&self, name: &'static str, request: u32, arg: &mut T) -> Result<(), SysError> {
        may_fail(name)?;
        if left_out(name) {
            return Ok(());
        }
        let fd = self.here(name)?;
        // A number of 32 bits; musl's parameter is signed.
        let request = request as libc::Ioctl;
        // SAFETY: `arg` is the structure that this request reads and writes, live and initialised; the effect of a request
        // on mappings is proven where it is called with a range.
        let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(arg)) };
        if rc < 0 { Err(SysError::last(name)) } else { Ok(()) }
    }

    /// Registers `range`: from now on this descriptor gets its missing faults, and its minor faults if `minor`.
    ///
    /// # Errors
    /// Also if the number has become another userfaultfd's, which other code reads.
    pub(crate) fn register(&self, range: AddrRange, minor: bool) -> Result<(), SysError> {
        self.file.get()?;
        let minor = if minor { raw::UFFDIO_REGISTER_MODE_MINOR } else { 0 };
        let mut arg = raw::uffdio_register {
            range: uffdio_range(range),
            mode: (raw::UFFDIO_REGISTER_MODE_MISSING | minor).into(),
            ioctls: 0,
        };
        self.ioctl("UFFDIO_REGISTER", nr::UFFDIO_REGISTER, &mut arg)
    }

    /// Ends the registration of `range`. Threads that wait in a MINOR fault are not woken by this
    /// (`userfaultfd_unregister`).
    pub(crate) fn unregister(&self, range: AddrRange) -> Result<(), SysError> {
        self.ioctl("UFFDIO_UNREGISTER", nr::UFFDIO_UNREGISTER, &mut uffdio_range(range))
    }

    /// Wakes every thread that waits in `range`: it faults again. Needs no registration.
    pub(crate) fn wake(&self, range: AddrRange) -> Result<(), SysError> {
        self.ioctl("UFFDIO_WAKE", nr::UFFDIO_WAKE, &mut uffdio_range(range))
    }

    /// Maps the pages that the file has in `range` and wakes their waiters.
    pub(crate) fn map_present(&self, range: AddrRange) -> Result<Continued, SysError> {
        let mut arg = raw::uffdio_continue { range: uffdio_range(range), mode: 0, mapped: 0 };
        match self.ioctl("UFFDIO_CONTINUE", nr::UFFDIO_CONTINUE, &mut arg) {
            Ok(()) => Ok(Continued::Bytes(range.len)),
            // EAGAIN has two meanings, told apart by the sign of `mapped` (ioctl_userfaultfd(2)).
            Err(e) if e.errno == Errno::EAGAIN => {
                Ok(usize::try_from(arg.mapped).ok().filter(|n| *n > 0).map_or(Continued::TryAgain, Continued::Bytes))
            }
            Err(e) if e.errno == Errno::EEXIST => Ok(Continued::AlreadyMapped),
            Err(e) if e.errno == Errno::EFAULT => Ok(Continued::Hole),
            Err(e) if e.errno == Errno::ENOENT => Ok(Continued::NotRegistered),
            Err(e) => Err(e),
        }
    }

    /// Reads waiting messages without blocking, in place of those in `into`; returns how many there were.
    pub(crate) fn read(&self, into: &mut Messages, limit: usize) -> Result<usize, SysError> {
        const CALL: &str = "read(userfaultfd)";
        into.replace(limit, |room| {
            may_fail(CALL)?;
            match direct::read(self.here(CALL)?, room) {
                // No userfaultfd any more: a read of one never returns 0.
                Ok(0) => Err(SysError::new(CALL, Errno::EBADF)),
                Err(Errno::EAGAIN) => Ok(0),
                read => read.map_err(|e| SysError::new(CALL, e)),
            }
        })
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.unchecked()
    }
}

fn uffdio_range(range: AddrRange) -> raw::uffdio_range {
    raw::uffdio_range { start: range.start.0 as u64, len: range.len as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_kernel_is_not_asked_for_what_can_be_done_without() {
        let wanted = UffdFeatures::MINOR_SHMEM | UffdFeatures::EXACT_ADDRESS | UffdFeatures::SIGBUS;
        // Linux 5.15 has no EXACT_ADDRESS, 5.10 no minor faults.
        assert_eq!(wanted.within(UffdFeatures::MINOR_SHMEM), UffdFeatures::MINOR_SHMEM | UffdFeatures::SIGBUS);
        assert_eq!(wanted.within(UffdFeatures::empty()), UffdFeatures::SIGBUS);
        assert_eq!(wanted.within(UffdFeatures::all()), wanted);
    }

    #[test]
    fn a_kernel_that_is_asked_for_what_it_does_not_know_refuses_the_handshake() {
        let unknown = UffdFeatures::from_bits_retain(1 << 62);
        let Ok(offered) = Uffd::offered(UffdSource::UserModeOnly) else {
            println!("SKIP: no userfaultfd");
            assert!(
                std::env::var_os("REVOCABLE_CI").is_none_or(|value| value != "1"),
                "this machine is to run every test"
            );
            return;
        };
        assert!(!offered.is_empty());
        let refused = Uffd::open_by(UffdSource::UserModeOnly, unknown).expect_err("there is no such feature");
        assert_eq!(refused.errno, Errno::EINVAL);
    }

    /// The kernel's message describes the fault as it was.
    #[test]
    fn a_real_fault_is_understood() {
        use crate::sys::map::{self, Prot};
        use std::sync::mpsc;
        use std::time::{Duration, Instant};
        let features = UffdFeatures::MINOR_SHMEM | UffdFeatures::THREAD_ID | UffdFeatures::EXACT_ADDRESS;
        let Ok((uffd, _)) = Uffd::open(features) else {
            println!("SKIP: no userfaultfd");
            assert!(
                std::env::var_os("REVOCABLE_CI").is_none_or(|value| value != "1"),
                "this machine is to run every test"
            );
            return;
        };
        let page = crate::sys::page_size();
        let file = std::fs::File::from(map::memfd(c"faults", 2 * page as u64, 0).expect("a memfd"));
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0x5a; 2 * page], 0).expect("it takes them");
        let range =
            map::map_new(crate::sys::Addr(0), 2 * page, file.as_fd(), 0, Prot::ReadWrite).expect("it can be mapped");
        uffd.register(range, true).expect("shared memory can be registered");
        for (at, write) in [(0x123, false), (page + 0x456, true)] {
            let (tell, told) = mpsc::channel();
            let addr = range.start + at;
            let thread = std::thread::spawn(move || {
                tell.send(u32::try_from(crate::sys::thread::current_tid())).expect("it is heard");
                let byte = std::ptr::with_exposed_provenance_mut::<u8>(addr.0);
                if write {
                    // SAFETY: inside the mapping; the fault is resolved below.
                    unsafe { byte.write_volatile(1) };
                }
                // SAFETY: as above.
                unsafe { byte.read_volatile() }
            });
            let mut messages = Messages::none();
            let since = Instant::now();
            while uffd.read(&mut messages, 16).expect("it can be read") == 0 {
                assert!(since.elapsed() < Duration::from_secs(30), "no fault came");
                std::thread::sleep(Duration::from_micros(100));
            }
            let exact = Uffd::offered_here().expect("one is open").contains(UffdFeatures::EXACT_ADDRESS);
            let addr = if exact { addr } else { addr.page(page) };
            let tid = told.recv().expect("it said so").expect("a number");
            assert_eq!(messages.faults().collect::<Vec<_>>(), [FaultMessage { addr, tid, write }]);
            uffd.map_present(AddrRange::new(addr.page(page), page)).expect("the page is there");
            assert_eq!(thread.join().expect("it lives"), if write { 1 } else { 0x5a });
        }
        // SAFETY: nothing uses it any more.
        unsafe { map::unmap(range) }.expect("unmapped");
    }
}
