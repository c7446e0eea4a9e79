//! Pipes that hold the pages of a file: splice(2).
//!
//! A pipe refers to the pages of the page cache themselves, and nothing is copied: what is stored to them afterwards is in
//! the pipe too. It keeps them when the file lets go of them.
#![expect(unsafe_code, reason = "splice(2), pipe(2) and read(2) have no safe form without more features of nix")]

use super::known::KnownFile;
use super::{SysError, may_fail, page_size};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The most that one pipe is asked to hold, in bytes: more needs a privilege (`pipe-max-size`, pipe(7)).
const ONE: usize = 1 << 20;
/// The most pipes that are used as one: enough for 2 MiB in pipes of the default size.
const MOST: usize = 32;

/// Empty pipes that are used as one, in this order.
#[derive(Debug)]
pub(crate) struct Pipe {
    pipes: Vec<One>,
    /// How many bytes of whole pages they can hold.
    pub(crate) room: usize,
}

#[derive(Debug)]
struct One {
    read: KnownFile,
    write: KnownFile,
    room: usize,
}

impl Pipe {
    /// With room for `want` bytes, or for as many as the user may have (`pipe-user-pages-soft`, pipe(7)).
    pub(crate) fn new(want: usize) -> Result<Self, SysError> {
        let mut made = Self { pipes: Vec::new(), room: 0 };
        while made.room < want && made.pipes.len() < MOST {
            let one = One::new((want - made.room).min(ONE))?;
            made.room += one.room;
            made.pipes.push(one);
        }
        Ok(made)
    }

    /// Fails if other code has closed one.
    pub(crate) fn check(&self) -> Result<(), SysError> {
        self.pipes.iter().try_for_each(|one| one.read.get().and_then(|_| one.write.get()).map(drop))
    }

    /// Holds the pages of `file` from `offset` on, `len` bytes of them, at most its room. Both are multiples of the page
    /// size. Returns how many bytes: fewer only where the file ends. If it ends inside of a page and grows meanwhile, the
    /// rest is not held: parts of pages would take more slots than there are.
    ///
    /// A page that was never written (a hole, or only allocated) is held as zeroes, and not as what is stored to it later
    /// (`shmem_file_splice_read`). Of a huge page, the part that is taken out of the file is zeroed first, and what is held
    /// with it (`truncate_inode_partial_folio`).
    pub(crate) fn hold(&self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<usize, SysError> {
        let mut held = 0;
        for one in &self.pipes {
            let part = one.room.min(len - held);
            let got = one.hold(file, offset + held as u64, part)?;
            held += got;
            if got < part {
                break;
            }
        }
        Ok(held)
    }

    /// Copies the `len` bytes that it holds into `file`, from `offset` on.
    pub(crate) fn pour(&self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<(), SysError> {
        let mut poured = 0;
        for one in &self.pipes {
            let part = one.room.min(len - poured);
            one.pour(file, offset + poured as u64, part)?;
            poured += part;
        }
        Ok(())
    }

    /// Lets go of whatever it holds.
    pub(crate) fn clear(&self) {
        self.pipes.iter().for_each(One::clear);
    }
}

impl One {
    fn new(want: usize) -> Result<Self, SysError> {
        may_fail("pipe2")?;
        let mut ends = [-1; 2];
        // SAFETY: writes two descriptors into the array.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
            return Err(SysError::last("pipe2"));
        }
        // SAFETY: descriptors that the kernel has just given to this call alone.
        let [read, write] = ends.map(|end| KnownFile::new(unsafe { OwnedFd::from_raw_fd(end) }));
        let size = libc::c_int::try_from(want.next_power_of_two()).unwrap_or(libc::c_int::MAX);
        // SAFETY: changes a property of a pipe made here. A refusal leaves it as large as it is.
        unsafe { libc::fcntl(ends[1], libc::F_SETPIPE_SZ, size) };
        // SAFETY: asks for that property.
        let got = unsafe { libc::fcntl(ends[1], libc::F_GETPIPE_SZ) };
        // One slot a page. The size is a multiple of the page size.
        match usize::try_from(got) {
            Ok(room) if room >= page_size() => Ok(Self { read, write, room }),
            _ => Err(SysError::new("fcntl(F_GETPIPE_SZ)", Errno::last())),
        }
    }

    fn hold(&self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<usize, SysError> {
        let mut held = 0;
        while held < len && held % page_size() == 0 {
            may_fail("splice(from a file)")?;
            let mut at = offset_of(offset + held as u64)?;
            let write = self.write.get()?;
            // SAFETY: the kernel reads and writes `at`, and moves references to pages.
            let n = unsafe {
                libc::splice(
                    file.as_raw_fd(),
                    &raw mut at,
                    write.as_raw_fd(),
                    std::ptr::null_mut(),
                    len - held,
                    libc::SPLICE_F_NONBLOCK,
                )
            };
            match usize::try_from(n) {
                Ok(0) => break,
                Ok(n) => held += n,
                Err(_) if Errno::last() == Errno::EINTR => {}
                Err(_) => return Err(SysError::last("splice(from a file)")),
            }
        }
        Ok(held)
    }

    fn pour(&self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<(), SysError> {
        let mut poured = 0;
        while poured < len {
            may_fail("splice(to a file)")?;
            let mut at = offset_of(offset + poured as u64)?;
            let read = self.read.get()?;
            // SAFETY: as in `hold`.
            let n = unsafe {
                libc::splice(
                    read.as_raw_fd(),
                    std::ptr::null_mut(),
                    file.as_raw_fd(),
                    &raw mut at,
                    len - poured,
                    libc::SPLICE_F_NONBLOCK,
                )
            };
            match usize::try_from(n) {
                Ok(0) => return Err(SysError::new("splice(to a file)", Errno::EPIPE)),
                Ok(n) => poured += n,
                Err(_) if Errno::last() == Errno::EINTR => {}
                Err(_) => return Err(SysError::last("splice(to a file)")),
            }
        }
        Ok(())
    }

    fn clear(&self) {
        let mut scrap = [0u8; 4096];
        while let Ok(read) = self.read.get() {
            // SAFETY: writes into the array, at most its length.
            let n = unsafe { libc::read(read.as_raw_fd(), scrap.as_mut_ptr().cast(), scrap.len()) };
            if n == 0 || n < 0 && Errno::last() != Errno::EINTR {
                return;
            }
        }
    }
}

fn offset_of(offset: u64) -> Result<libc::off64_t, SysError> {
    libc::off64_t::try_from(offset).map_err(|_| SysError::new("splice", Errno::EOVERFLOW))
}
