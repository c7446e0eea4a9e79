//! A userfaultfd and its handler as an application writes them by hand: poll, read one message, `UFFDIO_CONTINUE`. The
//! loop is the one of the `userfaultfd` crate's example.
//!
//! UNSAFETY: ioctls with live, initialised structures, on a range of the bench's own.
#![expect(unsafe_code, reason = "raw system calls are what is measured")]

use super::raw::{Map, PAGE};
use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl as nr;
use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::thread;

/// A shared mapping of `len` bytes of a file, with a handler of its own. The mapping and the handler's thread live as
/// long as the process.
pub(crate) fn served(file: &impl AsFd, len: usize) -> &'static Map {
    let map: &'static Map = Box::leak(Box::new(Map::new(file.as_fd(), len, PAGE)));
    let uffd = Uffd::open().expect("the probe said so");
    uffd.register(map).expect("shared memory");
    thread::spawn(move || panic!("the plain handler ended: {}", uffd.serve()));
    map
}

struct Uffd(OwnedFd);

impl Uffd {
    /// Opens one that reports minor faults on shared memory.
    fn open() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        for flags in [flags, flags | abi::UFFD_USER_MODE_ONLY as libc::c_int] {
            // SAFETY: takes a number only.
            let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
            if let Some(fd) = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0) {
                // SAFETY: a new descriptor, which has no other owner.
                let uffd = Self(unsafe { OwnedFd::from_raw_fd(fd) });
                let features = abi::UFFD_FEATURE_MINOR_SHMEM.into();
                uffd.ioctl(nr::UFFDIO_API, &mut abi::uffdio_api { api: abi::UFFD_API.into(), features, ioctls: 0 })?;
                return Ok(uffd);
            }
        }
        Err(io::Error::last_os_error())
    }

    fn ioctl<T>(&self, request: u32, arg: &mut T) -> io::Result<()> {
        // SAFETY: `arg` is the structure that the request reads and writes; the ranges in it are the bench's own.
        let rc = unsafe { libc::ioctl(self.0.as_raw_fd(), request.into(), std::ptr::from_mut(arg)) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn register(&self, map: &Map) -> io::Result<()> {
        let mode = abi::UFFDIO_REGISTER_MODE_MISSING | abi::UFFDIO_REGISTER_MODE_MINOR;
        let range = abi::uffdio_range { start: map.addr() as u64, len: map.bytes().len() as u64 };
        self.ioctl(nr::UFFDIO_REGISTER, &mut abi::uffdio_register { range, mode: mode.into(), ioctls: 0 })
    }

    /// Resolves faults for ever, one page each.
    fn serve(&self) -> io::Error {
        loop {
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one live structure.
            unsafe { libc::poll(&raw mut poll, 1, -1) };
            let mut message = std::mem::MaybeUninit::<abi::uffd_msg>::uninit();
            // SAFETY: room for one message.
            let n = unsafe { libc::read(self.0.as_raw_fd(), message.as_mut_ptr().cast(), size_of::<abi::uffd_msg>()) };
            if n <= 0 {
                let e = io::Error::last_os_error();
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                    continue;
                }
                return e;
            }
            // SAFETY: the kernel has written a whole message.
            let message = unsafe { message.assume_init_ref() };
            // SAFETY: no events were asked for, so it is a page fault.
            let fault = unsafe { message.arg.pagefault };
            let start = fault.address & !(PAGE as u64 - 1);
            let mut arg =
                abi::uffdio_continue { range: abi::uffdio_range { start, len: PAGE as u64 }, mode: 0, mapped: 0 };
            if let Err(e) = self.ioctl(nr::UFFDIO_CONTINUE, &mut arg) {
                return e;
            }
        }
    }
}
